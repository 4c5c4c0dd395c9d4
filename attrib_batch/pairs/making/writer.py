"""Write a table of prompt pairs: streamed, atomic, the same bytes for the same pairs."""

from __future__ import annotations

import io
import os
import tempfile
import uuid
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from attrib_batch.errors import OutputError, RequestError
from attrib_batch.pairs.reading.columns import ROLE_BOUNDS, TableForm, pairs_schema
from attrib_batch.storage.local import TEMPORARY_PREFIX
from attrib_batch.storage.objects import ObjectUrl, is_object_url, put_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.pairs.reading.reader import Pair, Role

PLAIN = TableForm()
"""A table of texts alone."""
ROW_GROUP_ROWS = 10_000
"""Small enough that a worker that starts in the middle of a table decodes little it does not need."""


def write_pairs(
    path: str | Path,
    pairs: Iterable[Pair],
    *,
    form: TableForm = PLAIN,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> int:
    """Write pairs to a Parquet file, and return how many.

    The file appears under its name when it is complete: an error, also one raised by ``pairs``, leaves no
    file, and leaves one of that name as it was. At most ``row_group_rows`` pairs are in memory. What goes into an
    object store is complete on this machine's disk first, in its folder for temporary files.

    Args:
        path: the file, whose folder is made where it is missing; or s3:// or gs://bucket/file.
        pairs: the rows, in order.
        form: what the table has beside text, such as token ids.
        row_group_rows: rows in a Parquet row group, the unit that a reader can skip to.

    Raises:
        RequestError: ``path`` is the URL of no such place.
        OutputError: the file cannot be written.
    """
    if is_object_url(path):
        return _write_object(ObjectUrl.parse(str(path)), pairs, pairs_schema(form), row_group_rows)
    if "://" in str(path):
        raise RequestError(f"{path}: pairs are written to local paths, s3:// and gs://")
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                n_rows = _write(file, pairs, pairs_schema(form), row_group_rows)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Free the disk or choose another file."
        ) from error
    return n_rows


def serialize_pairs(pairs: Iterable[Pair], *, form: TableForm = PLAIN) -> bytes:
    """Return the bytes of the Parquet file that :func:`write_pairs` would write, for a few thousand pairs at most."""
    file = io.BytesIO()
    _write(file, pairs, pairs_schema(form), ROW_GROUP_ROWS)
    return file.getvalue()


def _write_object(url: ObjectUrl, pairs: Iterable[Pair], schema: pa.Schema, row_group_rows: int) -> int:
    if not url.key:
        raise RequestError(f"{url} is a bucket; name a file in it")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.parquet"
        try:
            with path.open("xb") as file:
                n_rows = _write(file, pairs, schema, row_group_rows)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}, which is to become {url}: {error.strerror or error}. Free that disk, or name a "
                "folder on another in TMPDIR."
            ) from error
        put_file(url, path)
    return n_rows


def _write(file: BinaryIO, pairs: Iterable[Pair], schema: pa.Schema, row_group_rows: int) -> int:
    n_rows = 0
    rows = iter(pairs)
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        while group := list(islice(rows, row_group_rows)):
            table = pa.Table.from_pylist([_as_row(pair) for pair in group], schema=schema)
            writer.write_table(table, row_group_size=row_group_rows)
            n_rows += len(group)
    return n_rows


def _as_row(pair: Pair) -> dict[str, Any]:
    """Return a pair as a dict; `dataclasses.asdict` copies every value, which takes longer than to write it."""
    return {**vars(pair), "roles": [_as_span(role) for role in pair.roles]}


def _as_span(role: Role) -> dict[str, Any]:
    start, end = ROLE_BOUNDS[role.by_token]
    return {"name": role.name, start: role.start, end: role.end}
