"""Read a table of prompt pairs that may be larger than memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.columns import DECODE_ERRORS, ROLE_BOUNDS, check_columns, one_line, table_form
from attrib_batch.pairs.reading.files import LocalFile, PairFile, find_file
from attrib_batch.pairs.reading.groups import moved_boundaries
from attrib_batch.pairs.reading.ids import check_ids, int64_ids, repeated_id_rows
from attrib_batch.tables import PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_DECODE_ROWS = 4096
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Role:
    """A named half-open span [start, end) of a clean prompt."""

    name: str
    start: int
    end: int
    by_token: bool = False
    """Whether the span is of the prompt's own tokens, a prepended BOS not counted, instead of its characters. Where
    ``start`` is negative both count from the end of the prompt, and an ``end`` of 0 is its end."""


Answers = tuple[str | int | None, ...] | None
"""Texts, or integers that are token ids."""


@dataclass(frozen=True)
class Pair:
    """One row of a table of pairs; None where the table has a null."""

    pair_id: int
    clean: str | None
    corrupted: str | None
    answers: Answers
    wrong_answers: Answers
    roles: tuple[Role, ...] = ()
    task: str | None = None
    template: str | None = None
    group: int | None = None
    from_chat: bool = False
    """Whether the prompts are what a chat template made, with the BOS that it writes."""
    repaired: str | None = None
    """Which words were exchanged to make the prompts equally long; is not read back."""


class PairTable:
    """A Parquet table of pairs, read forward by record batches.

    Rows are decoded a few thousand at a time, and a call that starts where an earlier one stopped goes on
    from there; one that starts before decodes its row group anew. Not safe to share between threads.
    """

    def __init__(self, source: PairFile, file: pq.ParquetFile, n_rows: int) -> None:
        self.path = str(source)
        """Where the file is: a path, or a URL."""
        self.n_rows = n_rows
        """How many rows there are to read, after the limit."""
        self.form = table_form(file.schema_arrow, self.path)
        """What it has beside text, such as token ids; the same form writes rows of it again."""
        self._source = source
        self._file = file
        self._columns = [name for name in PAIRS.names if name in file.schema_arrow.names]
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        self._group_starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._current: pa.RecordBatch | None = None
        self._position = -1  # the row that _current, then _batches, begin with; -1: nowhere

    @classmethod
    def open(cls, path: str | Path, limit: int | None = None, *, corrupted: bool = True) -> PairTable:
        """Open a table and check that its columns are those of pairs; no row is read.

        Args:
            path: a Parquet file with at least ``clean``, ``corrupted``, ``answers`` and ``wrong_answers``; also a URL
                that begins with ``s3://``, ``gs://`` or ``hf://datasets/``.
            limit: read only the first so many rows.
            corrupted: whether corrupted prompts are needed; otherwise that column may be absent.

        Raises:
            DatasetError: no such file, not Parquet, empty, or columns missing or of the wrong type.
        """
        if limit is not None and limit < 1:
            raise DatasetError(f"{path}: limit must be at least 1, not {limit}")
        source = find_file(path)
        opened = source.open()
        path = str(source)
        try:
            # Unbuffered, a whole column chunk is held in memory, and row groups can be of any size.
            file = pq.ParquetFile(opened, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
            schema = file.schema_arrow
        except DECODE_ERRORS as error:
            raise DatasetError(
                f"{path} is not a readable Parquet file ({one_line(error)}). Where it is CSV, TSV or JSON "
                "lines, convert it with `attrib-batch pairs import`; where it is Parquet, it is truncated or "
                "damaged."
            ) from error
        check_columns(schema, path, corrupted=corrupted)
        if file.metadata.num_rows == 0:
            raise DatasetError(f"{path} has no rows: there is nothing to score.")
        n_rows = file.metadata.num_rows if limit is None else min(limit, file.metadata.num_rows)
        return cls(source, file, n_rows)

    @property
    def has_ids(self) -> bool:
        """Whether the table states ``pair_id``; otherwise it is the row number."""
        return "pair_id" in self._columns

    def rows(self, start: int, stop: int) -> list[Pair]:
        """Return the pairs of the rows [start, stop), cut off at ``n_rows``.

        A role with a null in it comes back with an empty span, which no tokenizer can align, so that the pair
        is reported and not silently scored without it.

        Raises:
            DatasetError: rows that cannot be decoded, or a null ``pair_id``.
        """
        stop = min(stop, self.n_rows)
        if not 0 <= start < stop:
            return []
        pairs: list[Pair] = []
        try:
            self._seek(start)
            while self._position < stop:
                batch = self._peek().slice(0, stop - self._position)
                pairs += _decode(batch, self._position, self.path, from_chat=self.form.notes.from_chat)
                self._advance(batch.num_rows)
        except DECODE_ERRORS as error:
            self._position = -1
            raise DatasetError(
                f"{self.path}: rows {start} to {stop - 1} cannot be read ({one_line(error)}). The file is "
                "damaged: copy or make it again."
            ) from error
        return pairs

    def batches(self, size: int) -> Iterator[list[Pair]]:
        """Yield all rows in order, ``size`` at a time.

        Raises:
            DatasetError: as for :meth:`rows`.
        """
        for start in range(0, self.n_rows, size):
            yield self.rows(start, start + size)

    def fingerprint(self) -> str:
        """Return a hash of the file's content: the SHA-256 of its bytes, in hexadecimal (see `files`)."""
        return self._source.fingerprint()

    @property
    def is_local(self) -> bool:
        """Whether the file lies on a file system."""
        return isinstance(self._source, LocalFile)

    def pin(self) -> str:
        """Return what a worker compares to know that the file is still the one that was planned with."""
        return self._source.pin()

    def stamp(self) -> object:
        """Return what changes when the file is written or replaced; None where it is gone."""
        return self._source.stamp()

    def check_ids(self) -> None:
        """Check that every row has a ``pair_id`` of its own; 8 bytes of memory a row, none where ids rise.

        Raises:
            DatasetError: a null or repeated id, with the rows that have it.
        """
        if self.has_ids:
            check_ids(self._file, self.path, self.n_rows)

    def repeated_id_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows, in order, whose ``pair_id`` an earlier row has already.

        Raises:
            DatasetError: a null id.
        """
        if not self.has_ids:
            return np.empty(0, np.int64)
        return repeated_id_rows(self._file, self.path, self.n_rows)

    def moved_boundaries(self, begin: int, stop: int, chunk_pairs: int) -> dict[int, int]:
        """Find the boundaries of chunks that lie inside a group; see `groups`. Nothing is read without groups."""
        if "group" not in self._columns or stop - begin <= chunk_pairs:
            return {}
        return moved_boundaries(self._file, begin, stop, chunk_pairs)

    def _seek(self, start: int) -> None:
        """Make ``start`` the next row, going forward within a row group where that is possible."""
        group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        group_start = int(self._group_starts[group])
        if not group_start <= self._position <= start:
            self._current = None
            self._batches = self._iterate_from(group)
            self._position = group_start
        while self._position < start:
            self._advance(min(self._peek().num_rows, start - self._position))

    def _iterate_from(self, group: int) -> Iterator[pa.RecordBatch]:
        for index in range(group, self._file.metadata.num_row_groups):
            yield from self._file.iter_batches(_DECODE_ROWS, row_groups=[index], columns=self._columns)

    def _peek(self) -> pa.RecordBatch:
        """Return the batch that begins with the next row; it has at least one."""
        while self._current is None or self._current.num_rows == 0:
            self._current = next(self._batches, None)
            if self._current is None:
                raise pa.ArrowInvalid(f"the file ends at row {self._position}")
        return self._current

    def _advance(self, n_rows: int) -> None:
        """Move the cursor over the first rows of the current batch."""
        self._current = self._peek().slice(n_rows)
        self._position += n_rows


def _decode(batch: pa.RecordBatch, first_row: int, path: str, *, from_chat: bool) -> list[Pair]:
    n = batch.num_rows
    columns: dict[str, list[Any]] = {
        name: batch.column(name).to_pylist() for name in batch.schema.names if name != "pair_id"
    }
    if "pair_id" in batch.schema.names:
        ids = int64_ids(batch.column("pair_id"), first_row, path).tolist()
    else:
        ids = list(range(first_row, first_row + n))
    nothing: list[Any] = [None] * n
    return [
        Pair(
            pair_id,
            clean,
            corrupted,
            _answers(answers),
            _answers(wrong),
            _roles(roles),
            task,
            template,
            group,
            from_chat,
        )
        for pair_id, clean, corrupted, answers, wrong, roles, task, template, group in zip(
            ids, *(columns.get(name, nothing) for name in PAIRS.names[1:]), strict=True
        )
    ]


def _answers(value: str | int | list[str | int | None] | None) -> Answers:
    if value is None:
        return None
    return (value,) if isinstance(value, str | int) else tuple(value)


def _roles(value: list[dict[str, Any] | None] | None) -> tuple[Role, ...]:
    return tuple(_role(role) for role in value) if value else ()


def _role(role: dict[str, Any] | None) -> Role:
    if role is None or role["name"] is None:
        return Role("null", 0, 0)
    name = role["name"]
    for (start, end), by_token in zip(ROLE_BOUNDS, (False, True), strict=True):
        if role.get(start) is not None and role.get(end) is not None:
            return Role(name, role[start], role[end], by_token)
    return Role(name, 0, 0)
