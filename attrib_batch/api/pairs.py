"""Pairs as a caller has them: a file, a frame, or rows; as the file that a run reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.making.writer import serialize_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, ROLE_BOUNDS, TableForm, required_columns
from attrib_batch.pairs.reading.notes import TableNotes
from attrib_batch.pairs.reading.reader import Pair, Role
from attrib_batch.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FOLDER = "pairs"
"""Where a run's directory holds pairs that it was given as rows."""


def pairs_path(pairs: Any, out: str | Path | Store, name: str, *, corrupted: bool = True) -> str:
    """Return where the pairs lie; rows are written into the run's directory first.

    Args:
        pairs: a path or URL; a Polars or pandas frame, an Arrow table, or an iterable of mappings.
        out: the run's directory.
        name: the dataset's name.
        corrupted: whether corrupted prompts are needed.

    Raises:
        DatasetError: they are none of these, or a column is missing or of the wrong type.
    """
    if isinstance(pairs, str | Path):
        return str(pairs)
    rows = [_pair(index, row, required_columns(corrupted=corrupted)) for index, row in enumerate(_rows(pairs))]
    if not rows:
        raise DatasetError("pairs: there is no row, so there is nothing to score")
    form = TableForm(
        id_columns=[column for column in ANSWER_COLUMNS if _holds_ids(column, rows)],
        token_roles=any(role.by_token for row in rows for role in row.roles),
        notes=_notes(pairs),
    )
    store = Store.parse(out)
    relative = f"{FOLDER}/{name}.parquet"
    store.write_bytes(relative, serialize_pairs(rows, form=form))
    return str(store.path(relative))


def _notes(pairs: Any) -> TableNotes:
    """Return what an Arrow table's metadata says; frames of other libraries have none."""
    return TableNotes.of(pairs.schema, "pairs") if hasattr(pairs, "to_pylist") else TableNotes()


def _rows(pairs: Any) -> Iterator[Mapping[str, Any]]:
    """Yield rows as mappings, whatever library holds them."""
    if hasattr(pairs, "collect") and hasattr(pairs, "lazy"):  # a lazy Polars frame
        pairs = pairs.collect()
    if hasattr(pairs, "iter_rows"):  # Polars
        yield from pairs.iter_rows(named=True)
    elif hasattr(pairs, "to_pylist"):  # Arrow
        yield from pairs.to_pylist()
    elif hasattr(pairs, "to_dict") and hasattr(pairs, "columns"):  # pandas
        yield from pairs.to_dict("records")
    elif isinstance(pairs, list | tuple):
        yield from pairs
    else:
        raise DatasetError(
            f"pairs: expected a path, a Polars or pandas frame, an Arrow table or a list of dicts, not a "
            f"{type(pairs).__name__}"
        )


def _pair(index: int, row: Any, required: tuple[str, ...]) -> Pair:
    if isinstance(row, Pair):
        return row
    if not hasattr(row, "keys"):
        raise DatasetError(f"pairs: row {index} is a {type(row).__name__}; expected a dict")
    if missing := [name for name in required if name not in row]:
        raise DatasetError(
            f"pairs: row {index} has no {', '.join(missing)}; it has {', '.join(map(str, row)) or 'nothing'}"
        )
    value = {name: None if _is_missing(found) else found for name, found in row.items()}
    pair_id = value.get("pair_id")
    group = value.get("group")
    return Pair(
        pair_id=index if pair_id is None else _whole(index, "pair_id", pair_id),
        clean=_text(index, "clean", value["clean"]),
        corrupted=_text(index, "corrupted", value.get("corrupted")),
        answers=_answers(index, "answers", value["answers"]),
        wrong_answers=_answers(index, "wrong_answers", value["wrong_answers"]),
        roles=tuple(_roles(index, value.get("roles"))),
        task=_text(index, "task", value.get("task")),
        template=_text(index, "template", value.get("template")),
        group=None if group is None else _whole(index, "group", group),
    )


def _is_missing(value: Any) -> bool:
    """Return whether a value is missing: None, or the NaN that pandas puts there."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(index: int, column: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise DatasetError(f"pairs: row {index}, {column}: expected text, not {value!r}")


def _whole(index: int, column: str, value: Any) -> int:
    try:
        if int(value) == value:
            return int(value)
    except (TypeError, ValueError):
        pass
    raise DatasetError(f"pairs: row {index}, {column}: expected a whole number, not {value!r}")


def _answers(index: int, column: str, value: Any) -> tuple[str | int | None, ...] | None:
    if value is None:
        return None
    items = [value] if isinstance(value, str | int) else list(value)
    for item in items:
        if not isinstance(item, str) and not (hasattr(item, "__index__") and not isinstance(item, bool)):
            raise DatasetError(f"pairs: row {index}, {column}: expected texts or token ids, not {item!r}")
    return tuple(item if isinstance(item, str) else int(item) for item in items)


def _roles(index: int, value: Any) -> Iterable[Role]:
    """Yield roles: mappings with name, start and end; or one mapping from names to (start, end)."""
    if value is None:
        return
    items = (
        [{"name": name, "start": a, "end": b} for name, (a, b) in value.items()] if hasattr(value, "items") else value
    )
    for item in items:
        try:
            yield item if isinstance(item, Role) else _role(item)
        except (TypeError, KeyError, ValueError) as error:
            raise DatasetError(
                f"pairs: row {index}, roles: expected name, start and end of each (or start_token and end_token), not "
                f"{item!r}"
            ) from error


def _role(item: Any) -> Role:
    by_token = item.get("start") is None and item.get("start_token") is not None
    start, end = ROLE_BOUNDS[by_token]
    return Role(str(item["name"]), int(item[start]), int(item[end]), by_token)


def _holds_ids(column: str, rows: list[Pair]) -> bool:
    kinds = {type(item) for row in rows for item in (getattr(row, column) or ())}
    if kinds > {int}:
        raise DatasetError(f"pairs: {column} mixes texts and token ids; use one of them")
    return kinds == {int}
