"""From committed chunks to the moments of a cell, one part at a time.

Moments that workers committed are read as they are; of parts without them the scores are read. Memory stays bounded by
one part. Groups whose pairs lie in several parts count as several units there; what that makes wrong is corrected from
the scores of these pairs alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.dense import read_dense, select_pairs
from attrib_batch.analysis.statistics.moments import HEAD_SCOPES, KEYS, join_units, merge_moments
from attrib_batch.analysis.statistics.stability import MOST_BLOCKS, block_sums, merge_blocks
from attrib_batch.analysis.tables import Part, from_arrow
from attrib_batch.spec.positions import ALL
from attrib_batch.storage.ahead import read_ahead
from attrib_batch.tables.dense import pair_values
from attrib_batch.tables.merging import STRATUM_KEYS, merge_strata
from attrib_batch.tables.sums import chunk_moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from attrib_batch.spec import Cell
    from attrib_batch.tables.dense import DenseChunk

# Merging as parts arrive, not all at the end, is what bounds memory; merging every one of them would be slow.
_PENDING_ROWS = 500_000
_UNITS_AT_A_TIME = 256


@dataclass(frozen=True)
class Reduced:
    """The moments of a cell, see `attrib_batch.tables.moments`."""

    moments: pl.DataFrame
    """By `attrib_batch.analysis.statistics.moments.KEYS`."""
    strata: pl.DataFrame
    """By `attrib_batch.tables.merging.STRATUM_KEYS`."""
    blocks: pl.DataFrame
    """Sums by block of chunks, as from `attrib_batch.analysis.statistics.stability.merge_blocks`."""


def reduce_cell(
    cell: Cell, parts: Sequence[Part], pairs: pl.LazyFrame, gap: float, at: str | Sequence[str] = ALL
) -> Reduced:
    """Return the moments of all scores of a cell.

    Args:
        cell: the cell, for messages.
        parts: its committed parts.
        pairs: of all parts, as from `pairs_of_parts`.
        gap: the mean gap of all of its pairs, in metric units.
        at: the positions that its method was asked for.

    Raises:
        OutputError: scores are read that are not finite, or that do not belong to the baselines beside them.
    """
    moments, strata = _Merged(partial(merge_moments, gap=gap), KEYS), _Merged(merge_strata, STRATUM_KEYS)
    blocks: list[pl.DataFrame] = []
    for index, (of_part, by_stratum) in enumerate(_sums_of_parts(cell, parts, at)):
        moments.add(of_part)
        if by_stratum is not None:
            strata.add(by_stratum)
        blocks.append(_with_strings(block_sums(from_arrow(of_part), index % MOST_BLOCKS)))
        if len(blocks) == 2 * MOST_BLOCKS:
            blocks = [merge_blocks(blocks)]
    total = moments.total()
    for pieces, gaps in _parts_of_units(cell, parts, straddling_pairs(pairs), gap, at):
        total = join_units(total, pieces, gaps)
    return Reduced(total, strata.total(), merge_blocks(blocks))


@dataclass
class _Layout:
    """Pieces whose rows have the same keys in the same order: they are merged row by row, without comparing keys."""

    keys: pa.Table
    pieces: list[pl.DataFrame] = field(default_factory=list)


@dataclass
class _Merged:
    """Pieces that are merged from time to time."""

    merge: Callable[[pl.DataFrame, Sequence[str]], pl.DataFrame]
    keys: tuple[str, ...]
    _layouts: list[_Layout] = field(default_factory=list, init=False)
    _n_rows: int = field(default=0, init=False)
    _before: list[pl.DataFrame] = field(default_factory=list, init=False)
    """What is merged by its keys already."""

    def add(self, table: pa.Table) -> None:
        """Add the rows of a part."""
        keys = table.select(self.keys)
        layout = next((known for known in self._layouts if known.keys.equals(keys)), None)
        if layout is None:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._before, self._layouts = [self.total()], []
            layout = _Layout(keys)
            self._layouts.append(layout)
        layout.pieces.append(from_arrow(table.drop_columns(list(self.keys))).with_row_index(_ROW))
        self._n_rows += len(table)
        if self._n_rows >= _PENDING_ROWS:
            for layout in self._layouts:
                layout.pieces = [self.merge(pl.concat(layout.pieces), [_ROW])]
            self._n_rows = 0

    def total(self) -> pl.DataFrame:
        """Return the sum of all parts."""
        merged = list(self._before)
        for layout in self._layouts:
            sums = self.merge(pl.concat(layout.pieces), [_ROW]).sort(_ROW).drop(_ROW)
            merged.append(pl.concat([_with_strings(from_arrow(layout.keys)), sums], how="horizontal"))
        return self.merge(pl.concat(merged), self.keys)


def _with_strings(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame whose names are strings: the dictionaries of two files differ."""
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


_ROW = "row"
_MOST_LAYOUTS = 16


def _sums_of_parts(
    cell: Cell, parts: Sequence[Part], at: str | Sequence[str]
) -> Iterator[tuple[pa.Table, pa.Table | None]]:
    """Yield the moments and the strata of parts; of several whose strata are in one file, the last has them all."""
    holders = Counter(part.strata.relative for part in parts if part.strata is not None)
    last = {part.strata.relative: index for index, part in enumerate(parts) if part.strata is not None}

    def read(index: int) -> tuple[pa.Table, pa.Table | None] | None:
        part = parts[index]
        if part.moments is None or part.strata is None:
            return None
        name = part.strata.relative
        try:
            return part.moments.read(), part.strata.read() if last[name] == index else None
        except FileNotFoundError:
            if holders[name] > 1:
                raise
            return None  # a driver has just joined it with others

    for part, found in zip(parts, read_ahead(read, range(len(parts))), strict=True):
        # Scores take memory: those of one part at a time.
        yield chunk_moments(read_dense(cell, part, at)) if found is None else found


def straddling_pairs(pairs: pl.LazyFrame) -> pl.DataFrame:
    """Find the pairs of groups that lie in more than one part.

    Args:
        pairs: of all parts, as from `pairs_of_parts`.

    Returns:
        ``pair_id``, ``unit`` (the smallest pair_id of the group), ``part`` (index into ``parts``), ``gap`` (clean minus
        corrupted metric), the groups that begin first coming first.
    """
    pairs = pairs.filter(pl.col("group").is_not_null())
    groups = (
        pairs.group_by("group")
        .agg(unit=pl.col("pair_id").min(), first=pl.col("part").min(), last=pl.col("part").max())
        .filter(pl.col("first") < pl.col("last"))
    )
    return (
        pairs.join(groups, on="group")
        .sort("first", "unit", "part", "pair_id")
        .select("pair_id", "unit", "part", gap=pl.col("clean_metric") - pl.col("corrupted_metric"))
        .collect(engine="streaming")
    )


def _parts_of_units(
    cell: Cell, parts: Sequence[Part], straddling: pl.DataFrame, gap: float, at: str | Sequence[str]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield what `join_units` takes, for so many units at a time that memory stays bounded."""
    units = straddling.get_column("unit").unique(maintain_order=True)
    for offset in range(0, len(units), _UNITS_AT_A_TIME):
        batch = straddling.filter(pl.col("unit").is_in(units.slice(offset, _UNITS_AT_A_TIME).implode()))
        pieces = [
            _parts_here(read_dense(cell, parts[index], at), here).with_columns(part=pl.lit(index, pl.Int64))
            for (index,), here in batch.partition_by("part", as_dict=True, include_key=False).items()
        ]
        gaps = batch.group_by("unit", "part").agg(k_all=pl.len().cast(pl.Float64), e=(pl.col("gap") - gap).sum())
        yield pl.concat(pieces), gaps


def _parts_here(chunk: DenseChunk, pairs: pl.DataFrame) -> pl.DataFrame:
    """Add up the values of pairs (``pair_id``, ``unit``) of one part within their units."""
    wanted = np.isin(chunk.facts.pair_id, pairs.get_column("pair_id").to_numpy())
    chosen = select_pairs(chunk, wanted)
    unit_of = dict(pairs.select("pair_id", "unit").iter_rows())
    unit = np.array([unit_of[pair] for pair in chosen.facts.pair_id.tolist()], dtype=np.int64)
    frames = []
    for found in pair_values(chosen):
        units, k, sums = found.by_unit(unit)
        n_keys = len(found.layer)
        has_position = found.scope not in HEAD_SCOPES
        frames.append(
            pl.DataFrame(
                {
                    "layer": np.tile(found.layer, len(units)),
                    "head": np.tile(found.head, len(units)),
                    "position": np.tile(found.position, len(units)),
                    "unit": np.repeat(units, n_keys),
                    "k": np.repeat(k, n_keys),
                    "s": sums.ravel(),
                }
            ).select(
                component=pl.lit(found.component),
                scope=pl.lit(str(found.scope)),
                role=pl.lit(found.role, pl.String),
                layer="layer",
                head=pl.when(pl.col("head") >= 0).then("head"),
                position=pl.when(has_position).then("position"),
                unit="unit",
                k="k",
                s="s",
            )
        )
    return pl.concat(frames)
