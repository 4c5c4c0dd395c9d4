"""Import pairs from CSV, TSV, JSON lines or Parquet whose columns have other names or simpler types.

The rules, by kind of file:

- Columns are renamed by a mapping; columns that are then none of a table of pairs are left out.
- ``answers`` and ``wrong_answers``: in CSV and TSV one cell, its answers separated by ``|`` and taken as they
  stand, leading space included (``" Mary| Jane"``); in JSON lines and Parquet a string or a list of strings.
- Answers are texts, also where they look like numbers. They are token ids, written as integers, only where the caller
  says so; integers in JSON lines and Parquet are refused otherwise.
- ``roles``: a list of objects with ``name``, ``start`` and ``end``; in CSV and TSV the same as JSON in one cell.
- ``pair_id``: the row number where there is no such column.
- An empty cell in CSV and TSV is a null. Their columns without a name are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.making.source_rows import CELL_FILES, READERS
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, AnswerKind
from attrib_batch.pairs.reading.reader import Pair, Role
from attrib_batch.tables import PAIRS, REQUIRED_PAIR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from attrib_batch.pairs.reading.reader import Answers

ANSWER_SEPARATOR = "|"
_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)
_TOKEN_IDS = range(2**63)
_WHOLE_NUMBER = re.compile(r"\s*[0-9]{1,19}\s*")


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    n_pairs: int
    answers_look_like_ids: bool
    """Whether all answers were cells of whole numbers that were taken as text."""


def import_pairs(
    source: str | Path, target: str | Path, mapping: Mapping[str, str], *, answers: AnswerKind = AnswerKind.TEXT
) -> Imported:
    """Write a table of pairs from a file of another kind, row by row.

    Args:
        source: a ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet`` file, UTF-8 where it is text.
        target: the Parquet file to write, or the URL of an object; appears when it is complete.
        mapping: the source's column names to ours; columns that have our name already need none.
        answers: whether answers are texts or token ids.

    Raises:
        DatasetError: the source cannot be read, lacks a column, or a value cannot be a pair's; names the line.
        OutputError: the target cannot be written.
    """
    source = Path(source)
    read = READERS.get(source.suffix.lower())
    if read is None:
        raise DatasetError(f"{source}: unknown kind of file; known are {', '.join(READERS)}.")
    if not source.is_file():
        raise DatasetError(f"{source}: no such file. Paths are relative to {Path.cwd()}.")
    if Path(target).exists() and source.samefile(target):
        raise DatasetError(f"{source} is both source and target: name another file to write.")
    unknown = [ours for ours in mapping.values() if ours not in PAIRS.names]
    if unknown:
        raise DatasetError(f"{unknown[0]!r} is no column of a table of pairs; those are {', '.join(PAIRS.names)}.")
    pairs = _pairs(source, read(source), mapping, answers)
    if answers is AnswerKind.IDS:
        return Imported(write_pairs(target, pairs, id_columns=ANSWER_COLUMNS), answers_look_like_ids=False)
    like_ids: Counter[bool] = Counter()
    n_pairs = write_pairs(target, _watch_answers(pairs, like_ids))
    in_cells = source.suffix.lower() in CELL_FILES
    return Imported(n_pairs, answers_look_like_ids=in_cells and like_ids[True] > 0 and not like_ids[False])


def _watch_answers(pairs: Iterable[Pair], like_ids: Counter[bool]) -> Iterator[Pair]:
    """Pass pairs on and count whether their answers are whole numbers."""
    for pair in pairs:
        for answer in (*(pair.answers or ()), *(pair.wrong_answers or ())):
            if answer is not None:
                like_ids[_WHOLE_NUMBER.fullmatch(str(answer)) is not None] += 1
        yield pair


def _pairs(
    source: Path, rows: Iterator[tuple[str, dict[str, Any]]], mapping: Mapping[str, str], kind: AnswerKind
) -> Iterator[Pair]:
    columns: tuple[str, ...] = ()
    names: dict[str, str] = {}
    number = -1
    try:
        for number, (where, row) in enumerate(rows):
            if tuple(row) != columns:
                columns = tuple(row)
                names = _renamed(columns, mapping, f"{source}, {where}")
            values = {ours: row[theirs] for theirs, ours in names.items()}
            if source.suffix.lower() in CELL_FILES:
                for column in ANSWER_COLUMNS:
                    values[column] = values[column] and values[column].split(ANSWER_SEPARATOR)
            yield _pair(values, kind, number, f"{source}, {where}")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is not UTF-8 ({error.reason}). Convert its encoding first.") from error
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error.strerror or error}.") from error
    if number < 0:
        raise DatasetError(f"{source} has no rows: there is nothing to import.")


def _renamed(columns: tuple[str, ...], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """Map the source's columns that are used to ours."""
    present = ", ".join(columns)
    for theirs in mapping:
        if theirs not in columns:
            raise DatasetError(f"{where}: no column {theirs!r} to rename; there are {present}.")
    names = {theirs: mapping.get(theirs, theirs) for theirs in columns}
    used = {theirs: ours for theirs, ours in names.items() if ours in PAIRS.names}
    for ours in PAIRS.names:
        sources = [theirs for theirs, name in used.items() if name == ours]
        if len(sources) > 1:
            raise DatasetError(f"{where}: {' and '.join(sources)} would both be {ours}. Rename only one of them.")
        if not sources and ours in REQUIRED_PAIR_COLUMNS:
            raise DatasetError(
                f"{where}: nothing becomes the column {ours}; there are {present}. Say which with a renaming."
            )
    return used


def _pair(values: dict[str, Any], kind: AnswerKind, number: int, where: str) -> Pair:
    pair_id = _integer(values["pair_id"], "pair_id", where) if "pair_id" in values else number
    if pair_id is None:
        raise DatasetError(f"{where}: pair_id is null. Give every row one, or leave the column out.")
    return Pair(
        pair_id=pair_id,
        clean=_text(values["clean"], "clean", where),
        corrupted=_text(values["corrupted"], "corrupted", where),
        answers=_answers(values["answers"], kind, "answers", where),
        wrong_answers=_answers(values["wrong_answers"], kind, "wrong_answers", where),
        roles=_roles(values.get("roles"), where),
        task=_text(values.get("task"), "task", where),
        template=_text(values.get("template"), "template", where),
        group=_integer(values.get("group"), "group", where),
    )


def _text(value: Any, column: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise DatasetError(f"{where}: {column} is {value!r}, not a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise DatasetError(f"{where}: {column} is not valid Unicode ({error.reason}).") from error
    return value


def _answers(value: Any, kind: AnswerKind, column: str, where: str) -> Answers:
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if kind is AnswerKind.IDS:
        return tuple(_token_id(item, column, where) for item in items)
    for item in items:
        if isinstance(item, int) and not isinstance(item, bool):
            raise DatasetError(
                f"{where}: {column} is {value!r}: whole numbers are read as token ids only with --answers ids. Write "
                "them as strings where they are texts."
            )
    if isinstance(value, str | list):
        return tuple(_text(item, column, where) for item in items)
    raise DatasetError(f"{where}: {column} is {value!r}, not a string or a list of strings.")


def _token_id(value: Any, column: str, where: str) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole or (isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)):
        token = int(value)
        if token in _TOKEN_IDS:
            return token
    raise DatasetError(
        f"{where}: {column} holds {value!r}, which is no token id: with --answers ids every answer is a whole number "
        "from 0 on. Leave the option out where answers are texts."
    )


def _integer(value: Any, column: str, where: str) -> int | None:
    if value is None:
        return None
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number not in _INT64:
        raise DatasetError(f"{where}: {column} is {value!r}, not an integer of 64 bits.")
    return number


def _roles(value: Any, where: str) -> tuple[Role, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{where}: roles is not JSON ({error.msg}).") from error
    roles: list[Role] = []
    for role in [] if value is None else value if isinstance(value, list) else [value]:
        match role:
            case {"name": str(name), "start": int(start), "end": int(end)} if start in _INT32 and end in _INT32:
                roles.append(Role(name, start, end))
            case _:
                raise DatasetError(f"{where}: a role is {role!r}, not an object with name, start and end.")
    return tuple(roles)
