"""Import pairs from CSV, TSV, JSON lines or Parquet whose columns have other names or simpler types.

The rules, by kind of file:

- Columns are renamed by a mapping; columns that are then none of a table of pairs are left out.
- ``answers`` and ``wrong_answers``: in CSV and TSV one cell, its answers separated by ``|`` and taken as they
  stand, leading space included (``" Mary| Jane"``); in JSON lines and Parquet a string or a list of strings.
- ``roles``: a list of objects with ``name``, ``start`` and ``end``; in CSV and TSV the same as JSON in one
cell. - ``pair_id``: the row number where there is no such column. - An empty cell in CSV and TSV is a null.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.columns import DECODE_ERRORS, one_line
from attrib_batch.pairs.reader import Pair, Role
from attrib_batch.pairs.writer import write_pairs
from attrib_batch.schema import PAIRS, REQUIRED_PAIR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ANSWER_SEPARATOR = "|"
_CELLS = (".csv", ".tsv")
_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)


def import_pairs(source: str | Path, target: str | Path, mapping: Mapping[str, str]) -> int:
    """Write a table of pairs from a file of another kind, row by row; returns how many rows.

    Args:
        source: a ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet`` file, UTF-8 where it is text.
        target: the Parquet file to write, or the URL of an object; appears when it is complete.
        mapping: the source's column names to ours; columns that have our name already need none.

    Raises:
        DatasetError: the source cannot be read, lacks a column, or a value cannot be a pair's; names the
        line. OutputError: the target cannot be written.
    """
    source = Path(source)
    read = _READERS.get(source.suffix.lower())
    if read is None:
        raise DatasetError(f"{source}: unknown kind of file; known are {', '.join(_READERS)}.")
    if not source.is_file():
        raise DatasetError(f"{source}: no such file. Paths are relative to {Path.cwd()}.")
    if Path(target).exists() and source.samefile(target):
        raise DatasetError(f"{source} is both source and target: name another file to write.")
    unknown = [ours for ours in mapping.values() if ours not in PAIRS.names]
    if unknown:
        raise DatasetError(f"{unknown[0]!r} is no column of a table of pairs; those are {', '.join(PAIRS.names)}.")
    return write_pairs(target, _pairs(source, read(source), mapping))


def _pairs(source: Path, rows: Iterator[tuple[str, dict[str, Any]]], mapping: Mapping[str, str]) -> Iterator[Pair]:
    columns: tuple[str, ...] = ()
    names: dict[str, str] = {}
    number = -1
    try:
        for number, (where, row) in enumerate(rows):
            if tuple(row) != columns:
                columns = tuple(row)
                names = _renamed(columns, mapping, f"{source}, {where}")
            values = {ours: row[theirs] for theirs, ours in names.items()}
            if source.suffix.lower() in _CELLS:
                for column in ("answers", "wrong_answers"):
                    values[column] = values[column] and values[column].split(ANSWER_SEPARATOR)
            yield _pair(values, number, f"{source}, {where}")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is not UTF-8 ({error.reason}). Convert its encoding first.") from error
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error.strerror or error}.") from error
    if number < 0:
        raise DatasetError(f"{source} has no rows: there is nothing to import.")


def _renamed(columns: tuple[str, ...], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """Source column to our column, for the columns that are used."""
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


def _pair(values: dict[str, Any], number: int, where: str) -> Pair:
    pair_id = _integer(values["pair_id"], "pair_id", where) if "pair_id" in values else number
    if pair_id is None:
        raise DatasetError(f"{where}: pair_id is null. Give every row one, or leave the column out.")
    return Pair(
        pair_id=pair_id,
        clean=_text(values["clean"], "clean", where),
        corrupted=_text(values["corrupted"], "corrupted", where),
        answers=_answers(values["answers"], "answers", where),
        wrong_answers=_answers(values["wrong_answers"], "wrong_answers", where),
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


def _answers(value: Any, column: str, where: str) -> tuple[str | None, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        return tuple(_text(item, column, where) for item in value)
    raise DatasetError(f"{where}: {column} is {value!r}, not a string or a list of strings.")


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


def _read_csv(source: Path, delimiter: str = ",") -> Iterator[tuple[str, dict[str, Any]]]:
    # utf-8-sig: spreadsheets begin a file with a byte order mark, which would become part of the first name.
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DatasetError(f"{source}: two columns have the same name in {', '.join(header)}.")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DatasetError(
                        f"{source}, line {reader.line_num}: {len(cells)} cells under {len(header)} column "
                        "names. Quote values that hold the separator."
                    )
                yield (
                    f"line {reader.line_num}",
                    {name: cell or None for name, cell in zip(header, cells, strict=True)},
                )
        except csv.Error as error:
            raise DatasetError(f"{source}, line {reader.line_num}: {error}") from error


def _read_tsv(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return _read_csv(source, delimiter="\t")


def _read_json_lines(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with source.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DatasetError(f"{source}, line {number} is not JSON ({error.msg}).") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{source}, line {number} is not a JSON object, one a line.")
            yield f"line {number}", row


def _read_parquet(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except DECODE_ERRORS as error:
        raise DatasetError(f"{source} cannot be read as Parquet from row {number} on ({one_line(error)}).") from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
