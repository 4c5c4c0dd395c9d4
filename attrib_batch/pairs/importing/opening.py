"""Open a source file: what it is compressed with and what kind of file it is, by its content.

A name decides only between CSV and TSV, which content cannot tell apart. What is called ``.json`` is often JSON lines,
and what is called ``.csv`` may be compressed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, BinaryIO, cast

import pyarrow as pa

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.json_stream import JsonStream
from attrib_batch.pairs.reading.columns import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.remote import SourcePath

PROMPTS_KEY = "prompts"
"""Of a JSON object that holds a whole data set: the key of its list of rows."""
_WINDOW_CHARACTERS = 1 << 20
"""So much of a JSON file is looked at to tell what is in it."""
_MAGIC_BYTES = 4
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_COMPRESSED_ENDINGS = (".gz", ".zst", ".zstd")


class FileKind(StrEnum):
    """What a source file is."""

    CSV = "CSV"
    TSV = "TSV"
    JSON_LINES = "JSON lines"
    JSON_ARRAY = "a JSON array"
    JSON_OBJECT = "a JSON object"
    PARQUET = "Parquet"

    @property
    def has_cells(self) -> bool:
        """Whether all values are text; an empty cell is then a null."""
        return self in {FileKind.CSV, FileKind.TSV}


_KINDS_BY_ENDING = {".csv": FileKind.CSV, ".tsv": FileKind.TSV, ".parquet": FileKind.PARQUET}
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
KNOWN_ENDINGS = (*_KINDS_BY_ENDING, *_JSON_ENDINGS)


@contextmanager
def open_bytes(path: SourcePath) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed where it is gzip or zstd.

    Raises:
        DatasetError: while it is read: it cannot be, or not be decompressed.
    """
    try:
        magic = _first_bytes(path)
        with path.open("rb") as plain:
            if magic.startswith(_GZIP):
                with gzip.open(plain) as file:
                    yield cast("BinaryIO", file)
            elif magic.startswith(_ZSTD):
                with pa.input_stream(plain, compression="zstd") as stream, io.BufferedReader(stream) as buffered:
                    yield cast("BinaryIO", buffered)
            else:
                yield plain
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise DatasetError(f"{path} cannot be decompressed ({one_line(error)}). It is cut off or damaged.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or one_line(error)}.") from error


@contextmanager
def open_text(path: SourcePath, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Open a file of UTF-8 text; a byte order mark at its beginning is no part of the text.

    Raises:
        DatasetError: as for :func:`open_bytes`, or it is not UTF-8.
    """
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 ({error.reason}). Convert its encoding first.") from error


def find_kind(path: SourcePath) -> FileKind:
    """Return what kind of file this is.

    Raises:
        DatasetError: of no known kind, or not readable.
    """
    ending = _ending(path)
    if ending == ".parquet" or _first_bytes(path) == _PARQUET:
        if path.suffix.lower() in _COMPRESSED_ENDINGS:
            raise DatasetError(f"{path} is compressed as a whole; Parquet files are compressed inside: unpack it.")
        return FileKind.PARQUET
    if ending in _KINDS_BY_ENDING:
        return _KINDS_BY_ENDING[ending]
    if ending in _JSON_ENDINGS:
        with open_text(path) as file:
            return _kind_of_json(file.read(_WINDOW_CHARACTERS), str(path))
    raise DatasetError(
        f"{path}: unknown kind of file; known are {', '.join(KNOWN_ENDINGS)}, each also with .gz or .zst."
    )


def _kind_of_json(window: str, path: str) -> FileKind:
    stream = JsonStream(io.StringIO(window), path)
    if stream.take("["):
        return FileKind.JSON_ARRAY
    if not stream.take("{"):
        return FileKind.JSON_LINES
    try:
        for key in stream.members():
            if key == PROMPTS_KEY and stream.take("["):
                return FileKind.JSON_OBJECT
            stream.value()
    except DatasetError:
        # What is not JSON, or goes on behind the window, is left to the reader of lines, which names the line.
        return FileKind.JSON_LINES
    return FileKind.JSON_LINES


def _ending(path: SourcePath) -> str:
    name = path.name.lower()
    for ending in _COMPRESSED_ENDINGS:
        name = name.removesuffix(ending)
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def _first_bytes(path: SourcePath) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAGIC_BYTES)
