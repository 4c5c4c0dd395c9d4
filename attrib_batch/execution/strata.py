"""Join the strata of chunks that follow each other; see `attrib_batch.tables.strata`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.storage.ahead import read_ahead
from attrib_batch.tables import STRATA, Chunk, Table, parse_part_name
from attrib_batch.tables.strata import strata_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store
    from attrib_batch.tables.strata import Range

JOINED_PAIRS = 16_384
"""Pairs from which on a file of joined strata is long enough: with tens of templates it then takes a few thousandths of
what the scores take."""

_PENDING_ROWS = 500_000


def join_strata(store: Store, cells: Iterable[Cell]) -> None:
    """Join the strata of committed chunks of some cells, and remove the files that are then of no use.

    Raises:
        OutputError: the store cannot be read or written. What is there can still be read.
    """
    for cell in cells:
        written = _written(store, cell)
        chunks = store.parts(Table.SCORES, cell.partition) & store.parts(Table.MOMENTS, cell.partition)
        files = strata_files(chunks, written)
        for block in _blocks(sorted(chunk for chunk in chunks if files.get(chunk) == chunk)):
            store.write_table(Chunk(cell, block[0][0], block[-1][1]).path(Table.STRATA), _joined(store, cell, block))
        written = _written(store, cell)
        for unused in written.keys() - set(strata_files(chunks, written).values()):
            store.remove(Chunk(cell, *unused).path(Table.STRATA))


def _written(store: Store, cell: Cell) -> dict[Range, int]:
    """Return the files of strata of a cell, and when each was written."""
    files = store.list(f"{Table.STRATA}/{cell.partition}")
    found = ((parse_part_name(file.name), file.modified_ns) for file in files)
    return {part: modified for part, modified in found if part is not None}


def _blocks(chunks: list[Range]) -> Iterator[list[Range]]:
    """Yield chunks that follow each other, as many as are to be one file; not those that stay alone."""
    block: list[Range] = []
    for chunk in chunks:
        if block and (block[-1][1] != chunk[0] or block[-1][1] - block[0][0] >= JOINED_PAIRS):
            if len(block) > 1:
                yield block
            block = []
        block.append(chunk)
    if len(block) > 1:
        yield block


def _joined(store: Store, cell: Cell, block: list[Range]) -> pa.Table:
    """Add up the strata of chunks, in one order whatever the order in which they are read."""
    import polars as pl  # takes longer to import than most runs of a driver need

    from attrib_batch.tables.merging import STRATUM_KEYS, merge_strata
    from attrib_batch.tables.shortening import shortened

    def read(chunk: Range) -> pl.DataFrame:
        frame: pl.DataFrame = pl.DataFrame(store.read_table(Chunk(cell, *chunk).path(Table.STRATA)))
        return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))  # dictionaries of two files differ

    pending: list[pl.DataFrame] = []
    for frame in read_ahead(read, block):
        pending.append(frame)
        if sum(map(len, pending[1:])) > max(_PENDING_ROWS, len(pending[0])):
            pending = [merge_strata(pl.concat(pending), STRATUM_KEYS)]
    merged = merge_strata(pl.concat(pending), STRATUM_KEYS).sort(STRATUM_KEYS, nulls_last=True)
    return shortened(merged.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(STRATA))
