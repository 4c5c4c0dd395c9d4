"""PEAP's files: clean prompts in one CSV file and counterfactual ones in another, roles as token positions.

The two are joined by ``prompt_id`` where both have it, whatever their order, and row by row otherwise. ``NAME_start``
and ``NAME_end`` are the half-open span of a role. PEAP counts positions with a BOS before the prompt, so that the first
token of the text is 1.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.options import LeadingSpace, Positions
from attrib_batch.pairs.importing.sources import Row, Source
from attrib_batch.pairs.importing.values import looks_like_id, required_text, spaced
from attrib_batch.pairs.reading.columns import TableForm
from attrib_batch.pairs.reading.reader import Pair, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading

_ID = "prompt_id"
_START, _END = "_start", "_end"
_WAITING_ROWS = 100_000
"""So many rows of one file may wait for theirs of the other."""


def recognise(look: Look) -> bool:
    """Return whether there is a prompt with the two tokens that may follow it."""
    return look.has("prompt", "correct_token", "wrong_token")


def form(options: ImportOptions, look: Look) -> TableForm:
    """Return the form of the table, whose roles are by token.

    Raises:
        RequestError: the file with the corrupted prompts is not named.
    """
    if options.join is None:
        raise RequestError(
            "the file has one prompt a row: name the file of the counterfactual prompts with --join, and this one's "
            "rows are the clean ones"
        )
    return TableForm(token_roles=bool(_role_names(look.first)))


def _role_names(row: Mapping[str, Any]) -> list[str]:
    starts = [name.removesuffix(_START) for name in row if name.endswith(_START)]
    return [name for name in starts if name + _END in row]


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs."""
    space = reading.options.leading_space or LeadingSpace.KEEP
    shift = 0 if reading.options.positions is Positions.WITHOUT_BOS else 1
    join = reading.options.join
    assert join is not None  # noqa: S101 - `form` has refused it
    counts = reading.counts
    partners = Source.find(join)
    for row, other in _joined(reading, partners):
        if not counts.read:
            spans = (name + end for name in _role_names(row.values) for end in (_START, _END))
            counts.use(row.values, {_ID, "prompt", "correct_token", "wrong_token", *spans})
        counts.read += 1
        if other is None:
            counts.refuse(row.where, f"no row of the same {_ID} in {partners.path.name}")
            continue
        try:
            pair = Pair(
                row.number,
                required_text(row.values, "prompt"),
                required_text(other.values, "prompt"),
                spaced([row.values.get("correct_token")], "correct_token", space, counts),
                spaced([row.values.get("wrong_token")], "wrong_token", space, counts),
                _roles(row.values, other.values, shift),
            )
        except RowRefusedError as refused:
            counts.refuse(row.where, str(refused))
            continue
        if shift:
            counts.changed["a span moved by one, since positions count a BOS"] += len(pair.roles)
        counts.add(row.where, pair)
        yield pair


def _roles(row: Mapping[str, Any], other: Mapping[str, Any], shift: int) -> tuple[Role, ...]:
    roles = []
    for name in _role_names(row):
        bounds = [row[name + _START], row[name + _END]]
        if bounds == [None, None]:
            continue
        if not all(map(looks_like_id, bounds)):
            raise RowRefusedError(f"{name}{_START} and {name}{_END} are no token positions")
        if [other.get(name + _START), other.get(name + _END)] != bounds:
            raise RowRefusedError(f"{name} has another position in the counterfactual file")
        start, end = (int(bound) - shift for bound in bounds)
        if not 0 <= start < end:
            raise RowRefusedError(f"{name} is no span of the prompt; see --positions")
        roles.append(Role(name, start, end, by_token=True))
    return tuple(roles)


def _joined(reading: Reading, other: Source) -> Iterator[tuple[Row, Row | None]]:
    """Yield each row of the first file with its partner; None where there is none."""
    first = next(iter(other.rows())).values
    ours = next(iter(reading.source.rows())).values
    if "prompt" not in first:
        raise DatasetError(f"{other.path}: no column prompt; there are {', '.join(first)}.")
    if _ID in first and _ID in ours:
        yield from _joined_by_id(reading.source, other)
        return
    for row, partner in zip_longest(reading.source.rows(), other.rows()):
        if row is None or partner is None:
            paths = (reading.source.path, other.path)
            shorter, longer = paths if row is None else paths[::-1]
            raise DatasetError(
                f"{shorter} has fewer rows than {longer}: rows are joined one by one, since not both have {_ID}."
            )
        yield row, partner


def _joined_by_id(source: Source, other: Source) -> Iterator[tuple[Row, Row | None]]:
    """Join by id while both files are read forward; rows wait for their partner, in bounded numbers.

    Rows come out when their partner is found, those without one at the end.
    """
    waiting: dict[Any, Row] = {}
    partners: dict[Any, Row] = {}
    for row, partner in zip_longest(source.rows(), other.rows()):
        arrived = [_wait(partners, partner, other)] if partner else []
        arrived += [_wait(waiting, row, source)] if row else []
        for key in dict.fromkeys(arrived):
            if key in waiting and key in partners:
                yield waiting.pop(key), partners.pop(key)
    yield from ((row, None) for row in waiting.values())


def _wait(rows: dict[Any, Row], row: Row, source: Source) -> Any:
    """Let a row wait for its partner, and return its id."""
    key = row.values.get(_ID)
    if key in rows:
        raise DatasetError(f"{source.path}, {row.where}: {_ID} {key!r} stands there twice.")
    if len(rows) >= _WAITING_ROWS:
        raise DatasetError(
            f"{source.path}: more than {_WAITING_ROWS:,} rows wait for the row of the same {_ID} in the other file. "
            f"Sort both files by {_ID}."
        )
    rows[key] = row
    return key
