"""Read the rows of CSV, TSV, JSON and Parquet files, one after the other, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.json_stream import JSON_ERRORS, JsonStream
from attrib_batch.pairs.importing.opening import PROMPTS_KEY, FileKind, find_kind, open_text
from attrib_batch.pairs.importing.remote import SourcePath, source_path
from attrib_batch.pairs.reading.columns import DECODE_ERRORS, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CELL_CHARACTERS = 2**31 - 1
"""The longest cell: the csv module stops at 131,072 characters unless told, and takes what fits a C long."""
_PARQUET_ROWS = 1024
_Placed = tuple[str, dict[str, Any]]
"""Where a row stands, and its values."""


@dataclass(frozen=True)
class Row:
    """One row of a source file."""

    where: str
    """Where it stands, such as ``line 7``."""
    values: dict[str, Any]
    number: int = 0
    """Its place among the rows, from 0."""


@dataclass(frozen=True)
class Source:
    """A file with rows; it is read anew whenever its rows are asked for, in bounded memory."""

    path: SourcePath
    kind: FileKind

    @classmethod
    def find(cls, path: str | Path) -> Source:
        """Return the file, after a look at what it is.

        Raises:
            DatasetError: there is none, or it is of no known kind.
        """
        found = source_path(path)
        return cls(found, find_kind(found))

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order.

        Raises:
            DatasetError: naming the place that cannot be read, or that there is no row.
        """
        read = {
            FileKind.CSV: _read_cells,
            FileKind.TSV: _read_cells,
            FileKind.JSON_LINES: _read_json_lines,
            FileKind.JSON_ARRAY: _read_json_array,
            FileKind.JSON_OBJECT: _read_json_prompts,
            FileKind.PARQUET: _read_parquet,
        }[self.kind]
        number = -1
        for number, (where, values) in enumerate(read(self)):
            yield Row(where, values, number)
        if number < 0:
            raise DatasetError(f"{self.path} has no rows: there is nothing to import.")

    @cached_property
    def head(self) -> dict[str, Any]:
        """What a JSON object holds beside its list of rows; nothing of any other kind of file.

        It may stand behind the rows, so the file is read to its end.

        Raises:
            DatasetError: the file cannot be read.
        """
        if self.kind is not FileKind.JSON_OBJECT:
            return {}
        found: dict[str, Any] = {}
        with open_text(self.path) as file:
            stream = JsonStream(file, str(self.path))
            stream.take("{")
            for key in stream.members():
                if key == PROMPTS_KEY and stream.take("["):
                    for _ in stream.elements():
                        pass
                else:
                    found[key] = stream.value()
        return found


def _read_cells(source: Source) -> Iterator[_Placed]:
    # Line feeds inside of quotes stay as they are.
    with open_text(source.path, newline="") as file:
        reader = csv.reader(file, delimiter="," if source.kind is FileKind.CSV else "\t", strict=True)
        try:
            rows = _cells(reader)
            header = next(rows, [])
            names = [name for name in header if name.strip()]
            if len(set(names)) != len(names):
                raise DatasetError(f"{source.path}: two columns have the same name in {', '.join(names)}.")
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DatasetError(
                        f"{source.path}, line {reader.line_num}: {len(cells)} cells under {len(header)} column "
                        "names. Quote values that hold the separator."
                    )
                values = {name: cell or None for name, cell in zip(header, cells, strict=True) if name.strip()}
                yield f"line {reader.line_num}", values
        except csv.Error as error:
            raise DatasetError(f"{source.path}, line {reader.line_num}: {error}") from error


def _cells(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield the cells of each row, of any length.

    The csv module's limit holds for the whole process, and two files may be read in turns: it is raised for a row at a
    time.
    """
    while True:
        before = csv.field_size_limit(_CELL_CHARACTERS)
        try:
            cells = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if cells is None:
            return
        yield cells


def _read_json_lines(source: Source) -> Iterator[_Placed]:
    with open_text(source.path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"line {number}"
            try:
                values = json.loads(line)
            except JSON_ERRORS as error:
                reason = getattr(error, "msg", None) or one_line(error)
                raise DatasetError(f"{source.path}, {where} is not JSON ({reason}).") from error
            yield _placed(source, where, values)


def _read_json_array(source: Source) -> Iterator[_Placed]:
    with open_text(source.path) as file:
        stream = JsonStream(file, str(source.path))
        stream.take("[")
        yield from _element_rows(source, stream)


def _read_json_prompts(source: Source) -> Iterator[_Placed]:
    with open_text(source.path) as file:
        stream = JsonStream(file, str(source.path))
        stream.take("{")
        for key in stream.members():
            if key == PROMPTS_KEY and stream.take("["):
                yield from _element_rows(source, stream)
            else:
                stream.value()


def _element_rows(source: Source, stream: JsonStream) -> Iterator[_Placed]:
    for number, values in enumerate(stream.elements()):
        yield _placed(source, f"element {number}", values)


def _placed(source: Source, where: str, values: Any) -> _Placed:
    if not isinstance(values, dict):
        raise DatasetError(f"{source.path}, {where} is not a JSON object; every row is one.")
    return where, values


def _read_parquet(source: Source) -> Iterator[_Placed]:
    number = 0
    try:
        with (
            source.path.open("rb") as opened,
            pq.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20) as file,
        ):
            for batch in file.iter_batches(_PARQUET_ROWS):
                for values in batch.to_pylist():
                    yield f"row {number}", values
                    number += 1
    except DECODE_ERRORS as error:
        raise DatasetError(
            f"{source.path} cannot be read as Parquet from row {number} on ({one_line(error)})."
        ) from error
