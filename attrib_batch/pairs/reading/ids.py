"""The ``pair_id`` column: 64-bit integers, none null, none twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.columns import DECODE_ERRORS, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import pyarrow.parquet as pq

_FIX = "Give every row an id of its own, or leave the column out: then the row number is used."


def check_ids(file: pq.ParquetFile, path: str, n_rows: int) -> None:
    """Check that the first ``n_rows`` rows have ids, each its own.

    Raises:
        DatasetError: a null or repeated id, with the rows that have it.
    """
    repeated = repeated_id_rows(file, path, n_rows)
    if repeated.size == 0:
        return
    row = int(repeated[0])
    ids = _all_ids(file, path, n_rows)
    first = int(np.flatnonzero(ids == ids[row])[0])
    raise DatasetError(
        f"{path}: pair_id {ids[row]} stands in row {first} and again in row {row}; {repeated.size} "
        f"rows repeat an earlier id. {_FIX}"
    )


def repeated_id_rows(file: pq.ParquetFile, path: str, n_rows: int) -> npt.NDArray[np.int64]:
    """Return the rows, in order, whose id an earlier row has already; no memory is needed where ids rise.

    Raises:
        DatasetError: a null id.
    """
    if _ids_rise(file, path, n_rows):
        return np.empty(0, np.int64)
    ids = _all_ids(file, path, n_rows)
    order = np.argsort(ids, kind="stable")
    again = ids[order[1:]] == ids[order[:-1]]
    return np.sort(order[1:][again])


def int64_ids(ids: pa.Array, first_row: int, path: str) -> npt.NDArray[np.int64]:
    """Return the ids of consecutive rows as an array.

    Raises:
        DatasetError: a null id, with its row.
    """
    if ids.null_count:
        row = first_row + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise DatasetError(f"{path}: pair_id is null in row {row}. {_FIX}")
    values: npt.NDArray[np.int64] = ids.cast(pa.int64()).to_numpy()
    return values


def _ids_rise(file: pq.ParquetFile, path: str, n_rows: int) -> bool:
    last: int | None = None
    for ids in _id_batches(file, path, n_rows):
        if (last is not None and ids[0] <= last) or np.any(ids[1:] <= ids[:-1]):
            return False
        last = int(ids[-1])
    return True


def _all_ids(file: pq.ParquetFile, path: str, n_rows: int) -> npt.NDArray[np.int64]:
    all_ids = np.empty(n_rows, np.int64)
    row = 0
    for ids in _id_batches(file, path, n_rows):
        all_ids[row : row + ids.size] = ids
        row += ids.size
    return all_ids


def _id_batches(file: pq.ParquetFile, path: str, n_rows: int) -> Iterator[npt.NDArray[np.int64]]:
    row = 0
    try:
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(65_536, row_groups=[group], columns=["pair_id"]):
                if row >= n_rows:
                    return
                ids = batch.column(0).slice(0, n_rows - row)
                yield int64_ids(ids, row, path)
                row += len(ids)
    except DECODE_ERRORS as error:
        raise DatasetError(f"{path}: pair_id cannot be read from row {row} on ({one_line(error)}).") from error
