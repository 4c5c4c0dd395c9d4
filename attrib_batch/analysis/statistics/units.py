"""Values by unit of a cell that has few units: what the bootstrap resamples, read from the scores."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.dense import read_dense
from attrib_batch.analysis.statistics.moments import HEAD_SCOPES, KEYS, Gap
from attrib_batch.analysis.statistics.resampling import draw_counts
from attrib_batch.analysis.statistics.studentised import FEWEST_UNITS, UnitGaps, UnitSums, studentised_quantiles
from attrib_batch.analysis.tables import scan
from attrib_batch.tables import Table
from attrib_batch.tables.dense import pair_values, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.analysis.tables import Part
    from attrib_batch.spec import Cell
    from attrib_batch.tables import Scope
    from attrib_batch.tables.dense import PairValues

ENOUGH_UNITS = 200
"""From so many units on, the t interval covers what it says for skewed scores too (`benchmarks/coverage.py`)."""

RESAMPLES = 1000
"""Of a cell; the ends of its intervals then vary by a few hundredths of their width with the seed."""

_SEED = 0
# A few seconds of reading, and less than a gigabyte; long prompts have more.
_MOST_ROWS = 20_000_000

QUANTILES = ("lower", "upper", "lower_normalized", "upper_normalized")
"""Columns: quantiles of studentised errors, see `attrib_batch.analysis.statistics.studentised.Quantiles`."""


def bootstrap_cell(cell: Cell, parts: Sequence[Part], gap: Gap, at: str | Sequence[str]) -> pl.DataFrame | None:
    """Compute how the studentised means of a cell of few units vary over resamples of its units.

    Args:
        cell: the cell, for messages.
        parts: its committed parts; their scores are read.
        gap: of the cell.
        at: the positions that its method was asked for.

    Returns:
        `KEYS` and `QUANTILES`, null where the bootstrap says nothing; the same numbers in every call. None for a cell
        of too many or too few units, or of so many score rows that reading them would take long.

    Raises:
        OutputError: scores are not finite, or do not belong to the baselines beside them.
    """
    if not FEWEST_UNITS <= gap.n_units < ENOUGH_UNITS:
        return None
    if sum(part.scores.store.count_rows(part.scores.relative) for part in parts) > _MOST_ROWS:
        return None
    pairs = _Pairs.read(parts)
    counts = draw_counts(gap.n_units, RESAMPLES, _SEED)[1:]
    frames = []
    for keys, sums in _by_unit(cell, parts, pairs, at):
        if np.count_nonzero(sums.pairs) >= FEWEST_UNITS:
            found = studentised_quantiles(sums, pairs.gaps(), counts)
            frames.append(
                keys.with_columns(pl.Series(name, getattr(found, name), nan_to_null=True) for name in QUANTILES)
            )
    return pl.concat(frames) if frames else None


@dataclass(frozen=True)
class _Pairs:
    """All pairs of a cell, in the order of their ids; arrays of shape (pair,)."""

    pair_id: np.ndarray
    unit: np.ndarray
    gap: np.ndarray

    @classmethod
    def read(cls, parts: Sequence[Part]) -> _Pairs:
        table = scan([part.baselines for part in parts], Table.BASELINES).sort("pair_id").collect()
        ids = table.get_column("pair_id").to_numpy()
        gap = (table.get_column("clean_metric") - table.get_column("corrupted_metric")).to_numpy()
        return cls(ids, units_of(ids, table.get_column("group").to_list()), gap)

    def gaps(self) -> UnitGaps:
        """Add up pairs and gaps within units."""
        return UnitGaps(np.bincount(self.unit).astype(np.float64), np.bincount(self.unit, self.gap))

    def units(self, pair_id: np.ndarray) -> np.ndarray:
        """Look up the units of pairs."""
        return self.unit[np.searchsorted(self.pair_id, pair_id)]


@dataclass(frozen=True)
class _Piece:
    """Unit sums of one part; a column is a head, or a position where heads are added up."""

    unit: np.ndarray
    """(unit,), those that have a pair here."""
    pairs: np.ndarray
    """(unit,)"""
    values: np.ndarray
    """(unit, layer, column)"""
    columns: np.ndarray
    """(column,)"""

    @classmethod
    def of(cls, found: PairValues, unit: np.ndarray) -> _Piece:
        """Add up values within the units of their pairs, given in the order of all pairs of the chunk."""
        units, n_pairs, sums = found.by_unit(unit)
        columns = found.head if found.scope in HEAD_SCOPES else found.position
        n_layers = int(found.layer[-1]) + 1
        values = sums.reshape(len(units), n_layers, -1)
        return cls(units, n_pairs, values, columns[: values.shape[-1]])


def _by_unit(
    cell: Cell, parts: Sequence[Part], pairs: _Pairs, at: str | Sequence[str]
) -> Iterator[tuple[pl.DataFrame, UnitSums]]:
    """Yield keys that the same pairs have, as a frame, and their sums by unit."""
    pieces: dict[tuple[str, Scope, str | None], list[_Piece]] = defaultdict(list)
    for part in parts:
        chunk = read_dense(cell, part, at)
        unit = pairs.units(chunk.facts.pair_id)
        for found in pair_values(chunk):
            pieces[found.component, found.scope, found.role].append(_Piece.of(found, unit))
    n_units = int(pairs.unit.max()) + 1
    while pieces:
        (component, scope, role), group = pieces.popitem()
        columns = np.unique(np.concatenate([piece.columns for piece in group]))
        n_layers = group[0].values.shape[1]
        held, values = np.zeros((n_units, len(columns))), np.zeros((n_units, n_layers, len(columns)))
        for piece in group:
            where = np.searchsorted(columns, piece.columns)
            held[np.ix_(piece.unit, where)] += piece.pairs[:, None]
            values[np.ix_(piece.unit, np.arange(n_layers), where)] += piece.values
        patterns, which = np.unique(held, axis=1, return_inverse=True)
        for index in range(patterns.shape[1]):
            chosen = np.flatnonzero(which.ravel() == index)
            layer, column = np.indices((n_layers, len(chosen))).reshape(2, -1)
            keys = _keys(component, scope, role, layer, columns[chosen][column])
            yield keys, UnitSums(patterns[:, index], values[:, :, chosen].reshape(n_units, -1))


def _keys(component: str, scope: Scope, role: str | None, layer: np.ndarray, column: np.ndarray) -> pl.DataFrame:
    of_head = scope in HEAD_SCOPES
    return (
        pl.DataFrame({"layer": layer.astype(np.int16), "column": column})
        .select(
            component=pl.lit(component),
            scope=pl.lit(str(scope)),
            role=pl.lit(role, pl.String),
            layer="layer",
            head=pl.when(pl.lit(of_head) & (pl.col("column") >= 0)).then(pl.col("column")).cast(pl.Int16),
            position=pl.when(pl.lit(not of_head)).then(pl.col("column")).cast(pl.Int32),
        )
        .select(KEYS)
    )
