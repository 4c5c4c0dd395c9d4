"""Read the rows of CSV, TSV, JSON lines and Parquet files, one after the other, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.columns import DECODE_ERRORS, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CELL_FILES = (".csv", ".tsv")
"""Files whose values are all text; an empty cell is a null."""
_CELL_CHARACTERS = 2**31 - 1
"""The longest cell: the csv module stops at 131,072 characters unless told, and takes what fits a C long."""


def _read_csv(source: Path, delimiter: str = ",") -> Iterator[tuple[str, dict[str, Any]]]:
    # utf-8-sig: spreadsheets begin a file with a byte order mark, which would become part of the first name.
    with source.open(encoding="utf-8-sig", newline="") as file, _cells_of_any_length():
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            names = [name for name in header if name.strip()]
            if len(set(names)) != len(names):
                raise DatasetError(f"{source}: two columns have the same name in {', '.join(names)}.")
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
                    {name: cell or None for name, cell in zip(header, cells, strict=True) if name.strip()},
                )
        except csv.Error as error:
            raise DatasetError(f"{source}, line {reader.line_num}: {error}") from error


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Raise the csv module's limit for as long as a file is read: it holds for the whole process."""
    before = csv.field_size_limit(_CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


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


READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
"""By the end of the file's name: a function that gives the place and the values, by column name, of every row."""
