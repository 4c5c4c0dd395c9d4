"""The ``group`` column: which boundaries of chunks would split a group, and where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attrib_batch.pairs.reading.columns import DECODE_ERRORS
from attrib_batch.tables.plan import MAX_GROUP_CHUNKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

_BATCH_ROWS = 65_536


def moved_boundaries(file: pq.ParquetFile, begin: int, stop: int, chunk_pairs: int) -> dict[int, int]:
    """Find the boundaries of chunks that lie inside a group; return the row at which each of these groups ends.

    A group is what stands next to each other under one number; a null is no group. One of more than `MAX_GROUP_CHUNKS`
    chunks is to be split, and so is one that cannot be read. Only this column is read, a few thousand rows at a time.

    Args:
        file: a table with the column ``group``.
        begin: the row at which the first chunk begins; a group that began before it counts from there.
        stop: the row at which the last chunk ends.
        chunk_pairs: pairs of a chunk: there are boundaries at ``begin + chunk_pairs``, ``begin + 2 * chunk_pairs``, ...
    """
    moved: dict[int, int] = {}
    waiting: list[int] = []  # boundaries inside the group that is not at its end yet
    group_start = begin

    def move(boundaries: list[int], start: int, end: int) -> None:
        if end - start <= MAX_GROUP_CHUNKS * chunk_pairs:
            moved.update(dict.fromkeys(boundaries, end))

    try:
        for row, starts, n_rows in _group_starts(file, begin, stop):
            bounds = np.concatenate([[group_start], starts])
            if starts.size:
                move(waiting, group_start, int(starts[0]))
                waiting = []
            first = begin + max(1, -(-(row - begin) // chunk_pairs)) * chunk_pairs
            boundaries = np.arange(first, row + n_rows, chunk_pairs)
            which = np.searchsorted(bounds, boundaries, side="right") - 1
            for boundary, index in zip(boundaries.tolist(), which.tolist(), strict=True):
                if bounds[index] == boundary:
                    continue
                if index + 1 < len(bounds):
                    move([boundary], int(bounds[index]), int(bounds[index + 1]))
                else:
                    waiting.append(boundary)
            group_start = int(bounds[-1])
    except DECODE_ERRORS:
        # Whoever reads these rows says which they are; those before and after them can be scored all the same.
        return moved
    move(waiting, group_start, stop)
    return moved


def _group_starts(file: pq.ParquetFile, begin: int, stop: int) -> Iterator[tuple[int, npt.NDArray[np.int64], int]]:
    """Yield batches of the rows [begin, stop): its first row, the rows at which a group begins, its number of rows.

    The first row of all counts as no beginning.
    """
    last: tuple[int, bool] | None = None
    row = 0
    for index in range(file.metadata.num_row_groups):
        n_rows = file.metadata.row_group(index).num_rows
        if row + n_rows <= begin:
            row += n_rows
            continue
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[index], columns=["group"]):
            skipped = max(0, min(begin - row, batch.num_rows))
            groups = batch.column(0).slice(skipped, max(0, stop - row - skipped)).cast(pa.int64())
            row += skipped
            if len(groups):
                known = groups.is_valid().to_numpy(zero_copy_only=False)
                numbers = groups.fill_null(0).to_numpy(zero_copy_only=False)
                same = np.empty(len(groups), dtype=bool)
                same[1:] = (numbers[1:] == numbers[:-1]) & known[1:] & known[:-1]
                same[0] = last is None or bool(last == (int(numbers[0]), True) and known[0])
                yield row, row + np.flatnonzero(~same), len(groups)
                last = int(numbers[-1]), bool(known[-1])
            row += batch.num_rows - skipped
            if row >= stop:
                return
