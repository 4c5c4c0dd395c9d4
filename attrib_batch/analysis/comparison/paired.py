"""Differences between two cells that scored the same pairs, pair by pair, with their cluster-robust standard errors.

Of the pairs that both cells scored and that have a value at a key (n of them, in G units), let u_i be the difference of
their values and U_g the sum of a unit's. With the mean m and k_g pairs in the unit,

    var(m) = G / (G - 1) * sum over g of (U_g - m k_g)^2 / n^2

Normalised values are divided by the mean gap M of all N common pairs, of each cell its own, which is uncertain as well.
By the delta method U_g - m k_g, divided by n, is joined by

    - ( R_a sum_g (y_i / M_a - 1)  -  R_b sum_g (w_i / M_b - 1) ) / N

with the gaps y_i and w_i and the normalised means R_a and R_b. All sums are kept relative to the mean of the pairs that
come first, so that they lose no digits. Chunks are read one after another, of both cells; units whose pairs lie in
several chunks come last.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from attrib_batch.analysis.comparison.matching import Values
from attrib_batch.analysis.statistics.dense import read_dense
from attrib_batch.analysis.tables import scan
from attrib_batch.tables import Table
from attrib_batch.tables.dense import head_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from attrib_batch.analysis.comparison.matching import Match
    from attrib_batch.analysis.tables import Part
    from attrib_batch.spec import Cell

_BYTES_AT_A_TIME = 128_000_000
_LEAST_PAIRS_AT_A_TIME = 256


@dataclass(frozen=True)
class Side:
    """One of the two cells."""

    cell: Cell
    parts: Sequence[Part]
    at: str | tuple[str, ...]
    """The positions that its method was asked for."""
    components: tuple[str, ...]
    """What its method has scores of."""
    sign: int
    """What its scores are multiplied by, so that both cells' point the same way."""


class Place(NamedTuple):
    """Keys that the same pairs have."""

    component: str
    scope: str
    role: str | None


@dataclass(frozen=True)
class Differences:
    """The differences in one place; arrays of shape (key,)."""

    place: Place
    layer: np.ndarray
    head: np.ndarray
    layer_b: np.ndarray
    mean_a: np.ndarray
    mean_b: np.ndarray
    sem: np.ndarray
    """Of mean_a - mean_b; NaN for one unit."""
    n_pairs: int
    n_units: int


def common_pairs(a: Side, b: Side) -> pl.DataFrame:
    """List the pairs that both cells scored: ``pair_id, unit`` (from 0), and of each side ``part`` and ``gap``."""
    frames = []
    for side in (a, b):
        pieces = [
            scan([part.baselines], Table.BASELINES).select(
                "pair_id",
                "group",
                part=pl.lit(index, pl.Int64),
                gap=pl.col("clean_metric") - pl.col("corrupted_metric"),
            )
            for index, part in enumerate(side.parts)
        ]
        schema = {"pair_id": pl.Int64, "group": pl.Int64, "part": pl.Int64, "gap": pl.Float64}
        frames.append(pl.concat(pieces).collect(engine="streaming") if pieces else pl.DataFrame(schema=schema))
    joined = frames[0].join(frames[1].drop("group"), on="pair_id", suffix="_b")
    group, pair_id = pl.col("group"), pl.col("pair_id")
    first = pl.when(group.is_null()).then(pair_id).otherwise(pair_id.min().over("group"))
    return joined.with_columns(unit=first.rank("dense").cast(pl.Int64) - 1).drop("group").sort("part", "pair_id")


def paired_differences(
    a: Side,
    b: Side,
    pairs: pl.DataFrame,
    match: Match,
    *,
    gaps: tuple[float, float] | None = None,
) -> Iterator[Differences]:
    """Yield the differences of the means of two cells, place by place.

    Args:
        a: one cell.
        b: the other, whose means are taken from those of the first.
        pairs: as from `common_pairs`.
        match: says which heads belong together.
        gaps: the mean gaps of the pairs, by which values are divided; None for raw values.
    """
    scales = (a.sign / gaps[0], b.sign / gaps[1]) if gaps else (a.sign, b.sign)
    unit = pairs.get_column("unit").to_numpy()
    n_units = int(unit.max(initial=-1)) + 1
    shifts = [
        np.bincount(unit, weights=pairs.get_column(name).to_numpy() / gap - 1, minlength=n_units)
        if gaps
        else np.zeros(n_units)
        for name, gap in zip(("gap", "gap_b"), gaps or (1.0, 1.0), strict=True)
    ]
    found: dict[Place, _Sums] = {}
    for batch in _batches(a, b, pairs, match):
        for place, (units, values_a, values_b, keys) in batch.items():
            sums = found.setdefault(place, _Sums(keys, (shifts[0], shifts[1])))
            sums.add(units, values_a * scales[0], values_b * scales[1])
    for place, sums in found.items():
        yield sums.result(place, len(pairs), n_units)


class _Keys(NamedTuple):
    layer: np.ndarray
    head: np.ndarray
    layer_b: np.ndarray


_Batch = dict[Place, tuple[np.ndarray, np.ndarray, np.ndarray, _Keys]]
"""By place: the units of pairs, their values of both cells (pair, key), and what the keys are."""


def _batches(a: Side, b: Side, pairs: pl.DataFrame, match: Match) -> Iterator[_Batch]:
    """Yield the values of sets of pairs that hold every unit whole."""
    both = set(a.components) & set(b.components)
    read_a, read_b = _reader(a, pairs, "part", both), _reader(b, pairs, "part_b", both)
    alone = (pl.col("part").min() == pl.col("part").max()).over("unit")
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as threads:
        for _, rows in pairs.filter(alone).group_by("part", maintain_order=True):
            yield _load(rows, read_a, read_b, match, threads)
        straddling = pairs.filter(~alone)
        if straddling.is_empty():
            return
        n_keys = sum(len(values.layer) for values in read_a(straddling.item(0, "part")).values())
        limit = max(_LEAST_PAIRS_AT_A_TIME, _BYTES_AT_A_TIME // (24 * max(n_keys, 1)))
        ordered = straddling.sort(pl.col("part").min().over("unit"), "unit", "part", "pair_id")
        # A unit goes where its first pair goes.
        number = (pl.int_range(pl.len()) // limit).first().over("unit")
        for _, rows in ordered.with_columns(number=number).group_by("number", maintain_order=True):
            yield _load(rows, read_a, read_b, match, threads)


_Read = Callable[[int], "Mapping[Place, Values]"]


def _reader(side: Side, pairs: pl.DataFrame, part: str, components: set[str]) -> _Read:
    """Return a function that reads what is asked of a part, by its index; the two parts read last are kept.

    Args:
        side: whose parts they are.
        pairs: those that are asked for.
        part: the column of ``pairs`` with the index of the part that holds each.
        components: those that are asked for.
    """
    pair_id = pl.col("pair_id")
    ranges = pairs.group_by(part).agg(low=pair_id.min(), high=pair_id.max())
    between = {index: (low, high) for index, low, high in ranges.iter_rows()}

    @lru_cache(maxsize=2)
    def read(index: int) -> Mapping[Place, Values]:
        chunk = read_dense(side.cell, side.parts[index], side.at, between[index])
        found = {}
        for component in components & chunk.heads.keys():
            for values in head_values(chunk, component):
                ids = chunk.facts.pair_id[values.pairs]
                place = Place(component, str(values.scope), values.role)
                found[place] = Values(values.layer, values.head, ids, values.values)
        return found

    return read


def _load(rows: pl.DataFrame, read_a: _Read, read_b: _Read, match: Match, threads: Executor) -> _Batch:
    """Read the values of some pairs (``pair_id, unit, part, part_b``), both sides at the same time."""
    pieces: dict[Place, list[tuple[np.ndarray, np.ndarray, np.ndarray, _Keys]]] = {}
    for (part_a, part_b), here in rows.group_by("part", "part_b", maintain_order=True):
        reading = threads.submit(read_a, part_a)
        values_b = read_b(part_b)
        values_a = reading.result()
        ids, unit = (here.get_column(name).to_numpy() for name in ("pair_id", "unit"))
        for place in values_a.keys() & values_b.keys():
            one, other = values_a[place], values_b[place]
            columns_a, columns_b = match(one, other)
            both = np.intersect1d(np.intersect1d(one.pair_id, other.pair_id), ids)
            if len(both) and len(columns_a):
                of_ids = np.argsort(ids)
                units = unit[of_ids[np.searchsorted(ids[of_ids], both)]]
                pieces.setdefault(place, []).append(
                    (
                        units,
                        one.values[np.searchsorted(one.pair_id, both)][:, columns_a],
                        other.values[np.searchsorted(other.pair_id, both)][:, columns_b],
                        _Keys(one.layer[columns_a], one.head[columns_a], other.layer[columns_b]),
                    )
                )
    joined = {}
    for place, found in pieces.items():
        units, values_of_a, values_of_b, keys = zip(*found, strict=True)
        joined[place] = np.concatenate(units), np.concatenate(values_of_a), np.concatenate(values_of_b), keys[0]
    return joined


class _Sums:
    """Sums over the units of one place."""

    def __init__(self, keys: _Keys, shifts: tuple[np.ndarray, np.ndarray]) -> None:
        self._keys, self._shifts = keys, shifts
        self._n = self._units = 0
        self._reference: np.ndarray | None = None
        n_keys = len(keys.layer)
        self._sum, self._a, self._b, self._q, self._r = (np.zeros(n_keys) for _ in range(5))
        self._k2 = 0.0
        self._with_shift = [np.zeros(n_keys), np.zeros(n_keys)]
        self._k_shift = [0.0, 0.0]

    def add(self, unit: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        """Add whole units: of each pair its unit, and its values (pair, key)."""
        difference = a - b
        if self._reference is None:
            self._reference = difference.mean(axis=0)
        order = np.argsort(unit, kind="stable")
        here, first = np.unique(unit[order], return_index=True)
        sums = np.add.reduceat((difference - self._reference)[order], first, axis=0)
        k = np.diff(np.append(first, len(unit))).astype(np.float64)
        self._n += len(unit)
        self._units += len(here)
        self._a += a.sum(axis=0)
        self._b += b.sum(axis=0)
        self._sum += sums.sum(axis=0)
        self._q += np.einsum("uk,uk->k", sums, sums)
        self._r += k @ sums
        self._k2 += float(k @ k)
        for index, shift in enumerate(self._shifts):
            self._with_shift[index] += shift[here] @ sums
            self._k_shift[index] += float(shift[here] @ k)

    def result(self, place: Place, n_all: int, n_all_units: int) -> Differences:
        """Return the differences; ``n_all`` common pairs, with or without a value here, in ``n_all_units`` units."""
        n, units = self._n, self._units
        delta = self._sum / n
        mean_a, mean_b = self._a / n, self._b / n
        own = (self._q - 2 * delta * self._r + delta**2 * self._k2) / n**2
        crossed = [
            (with_shift - delta * k_shift) / (n * n_all)
            for with_shift, k_shift in zip(self._with_shift, self._k_shift, strict=True)
        ]
        e, f = self._shifts
        of_gaps = (mean_a**2 * (e @ e) - 2 * mean_a * mean_b * (e @ f) + mean_b**2 * (f @ f)) / n_all**2
        sem = np.full(len(delta), np.nan)
        if units > 1:
            few, many = units / (units - 1), n_all_units / (n_all_units - 1)
            variance = few * (own - 2 * (mean_a * crossed[0] - mean_b * crossed[1])) + many * of_gaps
            sem = np.sqrt(np.clip(variance, 0, None))  # rounding may leave it a hair below 0
        return Differences(place, *self._keys, mean_a, mean_b, sem, n, units)
