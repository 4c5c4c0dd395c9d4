"""Compute the moments of a chunk, in pieces that threads can share.

What the sums are is said in `attrib_batch.tables.moments`. A piece is a few layers of a component. How a chunk is cut
does not depend on how many threads there are, and the pieces are put together in one order: so are the tables.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from attrib_batch.tables.dense import component_values
from attrib_batch.tables.moments import MOMENTS, STRATA, Scope, StratumKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from attrib_batch.tables.dense import DenseChunk, PairFacts, PairValues

_PIECE_VALUES = 1_600_000
"""Smaller pieces are more for threads to share, and more Python for them to wait for: a quarter of this writes a chunk
with two threads 1.46 times as fast as with one, this 1.74 times."""
_SINGLE_PIECE_VALUES = 8_000_000
"""Where one thread computes all pieces, they are only so small that memory stays small."""


def chunk_moments(chunk: DenseChunk) -> tuple[pa.Table, pa.Table]:
    """Compute the moments of a chunk; return tables of the schemas `MOMENTS` and `STRATA`."""
    pieces = MomentPieces(chunk, _SINGLE_PIECE_VALUES)
    return pieces.tables([pieces.compute(index) for index in range(len(pieces))])


@dataclass(frozen=True)
class _Rows:
    """Rows of one table of sums: those of some strata (one for moments) at some keys."""

    columns: Mapping[str, Any]
    """By name, a single value, or an array whose shape (stratum, key) may be 1 in either place."""
    shape: tuple[int, int]


Piece = tuple["list[_Rows]", "list[_Rows]"]
"""Rows of moments and of strata, as from `MomentPieces.compute`."""


class MomentPieces:
    """The moments of a chunk in pieces, which may be computed at the same time."""

    def __init__(self, chunk: DenseChunk, piece_values: int | None = None) -> None:
        """Cut a chunk; nothing is computed yet.

        Args:
            chunk: the chunk.
            piece_values: about as many scores as a piece adds up, over its pairs; where absent, so few that several
                threads have something to do.
        """
        piece_values = piece_values or _PIECE_VALUES
        self._chunk = chunk
        self._sums = _Sums(chunk.facts)
        self._pieces: list[tuple[str, slice]] = []
        for component in chunk.heads if len(chunk.facts.pair_id) else ():
            n_layers = chunk.blocks[0].scores[component].shape[1]
            size = sum(block.scores[component].size for block in chunk.blocks)
            step = -(-n_layers // max(1, min(n_layers, round(size / piece_values))))
            self._pieces += [(component, slice(first, first + step)) for first in range(0, n_layers, step)]

    def __len__(self) -> int:
        """Return how many pieces there are."""
        return len(self._pieces)

    def compute(self, index: int) -> Piece:
        """Compute a piece; to be given to `tables`."""
        component, layers = self._pieces[index]
        moments, strata = [], []
        for found in component_values(self._chunk, component, layers):
            n_keys = len(found.layer)
            sums = self._sums.of(found.pairs, found.values) | self._sums.extremes(found.pairs, found.values)
            moments.append(_Rows(_keys(found) | sums, (1, n_keys)))
            if found.scope in (Scope.LAST, Scope.ALL):
                for kind, names, part in self._sums.by_stratum(found.pairs, found.values):
                    named = {"kind": str(kind), "stratum": names}
                    strata.append(_Rows(_keys(found) | named | part, (len(names), n_keys)))
        return moments, strata

    def tables(self, pieces: Sequence[Piece]) -> tuple[pa.Table, pa.Table]:
        """Put pieces, all of them in their order, together to tables of the schemas `MOMENTS` and `STRATA`."""
        by_component: dict[str, list[Piece]] = defaultdict(list)
        for (component, _), piece in zip(self._pieces, pieces, strict=True):
            by_component[component].append(piece)
        found = []
        for which, schema in enumerate((MOMENTS, STRATA)):
            # The pieces of a component have rows of the same scopes, roles, positions and strata, of other layers.
            rows = [
                same for some in by_component.values() for same in zip(*(piece[which] for piece in some), strict=True)
            ]
            found.append(_table(rows, schema))
        return found[0], found[1]


def _keys(found: PairValues) -> dict[str, Any]:
    with_position = found.scope in _WITH_POSITION
    return {
        "component": found.component, "scope": str(found.scope), "role": found.role, "layer": found.layer,
        "head": found.head, "position": found.position if with_position else np.int32(_NO_POSITION),
    }  # fmt: skip


class _Sums:
    """Sums over the pairs of one chunk."""

    def __init__(self, facts: PairFacts) -> None:
        self._facts = facts
        self._mean_gap = float(facts.gap.mean()) if len(facts.gap) else 0.0
        n_units = int(facts.unit.max(initial=-1)) + 1
        self._pairs_of_unit = np.bincount(facts.unit, minlength=n_units).astype(np.float64)
        self._gap_of_unit = np.bincount(facts.unit, weights=facts.gap - self._mean_gap, minlength=n_units)
        self._strata: list[tuple[StratumKind, list[str], np.ndarray]] = []
        for kind, values in ((StratumKind.TEMPLATE, facts.template), (StratumKind.TASK, facts.task)):
            names = sorted({value for value in values if value is not None})
            codes = {name: code for code, name in enumerate(names)}
            # Of each pair the stratum that it is in, -1 for none.
            inside = np.array([-1 if value is None else codes[value] for value in values], dtype=np.int64)
            self._strata.append((kind, names, inside))

    def of(self, held: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        """Compute the sums over pairs ``held`` (indices) of ``values`` (pair, key); each of shape (key,)."""
        n = len(held)
        mean = values.mean(axis=0)
        deviation = values - mean
        units = self._facts.unit[held]
        order = np.argsort(units, kind="stable")
        first, sizes = _runs(units[order])
        k = sizes.astype(np.float64)
        # With one pair in each unit there is nothing to add up.
        d = deviation if len(k) == n else np.add.reduceat(deviation[order], first, axis=0)
        unit = units if len(k) == n else units[order][first]
        k_all, e = self._pairs_of_unit[unit], self._gap_of_unit[unit]
        return {
            "n": n, "mean": mean, "m2": np.einsum("pk,pk->k", deviation, deviation), "units": len(unit),
            "q": np.einsum("uk,uk->k", d, d),
            # The d_g add up to 0: relative to the mean size the sum is the same, and exactly 0 where sizes are equal.
            "r": (k - k.mean()) @ d, "k2": k @ k, "positive": np.count_nonzero(values > 0, axis=0),
            "gap": self._mean_gap, "cross": e @ d, "r_all": (k_all - k_all.mean()) @ d,
            "r_gap": e @ k, "k_all": k @ k_all,
        }  # fmt: skip

    def extremes(self, held: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        """Find the smallest and the largest value of each key, and whose they are; each of shape (key,)."""
        lowest, highest, ids = values.argmin(axis=0), values.argmax(axis=0), self._facts.pair_id[held]
        keys = np.arange(values.shape[1])
        return {
            "min": values[lowest, keys],
            "max": values[highest, keys],
            "min_pair": ids[lowest],
            "max_pair": ids[highest],
        }

    def by_stratum(
        self, held: np.ndarray, values: np.ndarray
    ) -> Iterator[tuple[StratumKind, list[str], dict[str, Any]]]:
        """Compute the sums of each stratum's pairs: kind, names of the strata that have any, (stratum, key)."""
        for kind, names, stratum in self._strata:
            inside = stratum[held] >= 0
            if inside.any():
                codes, units = stratum[held], self._facts.unit[held]
                order = np.lexsort((units, codes))[-np.count_nonzero(inside) :]  # those in none come first
                codes, units = codes[order], units[order]
                yield kind, [names[code] for code in codes[_runs(codes)[0]]], _sums_within(codes, units, values[order])


def _sums_within(stratum: np.ndarray, unit: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Compute the sums within each stratum of ``values`` (pair, key), sorted by stratum and unit."""
    first, n = _runs(stratum)
    mean = np.add.reduceat(values, first, axis=0) / n[:, None]
    deviation = values - np.repeat(mean, n, axis=0)
    starts = np.flatnonzero(np.diff(stratum, prepend=-1) | np.diff(unit, prepend=-1))
    k = np.diff(np.append(starts, len(unit))).astype(np.float64)
    d = deviation if len(starts) == len(unit) else np.add.reduceat(deviation, starts, axis=0)
    first_unit, units = _runs(stratum[starts])
    relative = k - np.repeat(np.add.reduceat(k, first_unit) / units, units)
    r = np.add.reduceat(relative[:, None] * d, first_unit, axis=0) if relative.any() else np.zeros((1, 1))
    return {
        "n": n[:, None], "mean": mean, "units": units[:, None], "q": np.add.reduceat(d * d, first_unit, axis=0),
        "r": r, "k2": np.add.reduceat(k * k, first_unit)[:, None],
        "positive": np.add.reduceat((values > 0).astype(np.int64), first, axis=0),
    }  # fmt: skip


def _runs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each run of equal codes begins, and how long it is."""
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    return first, np.diff(np.append(first, len(codes)))


def _table(groups: Sequence[Sequence[_Rows]], schema: pa.Schema) -> pa.Table:
    """Build a table from rows; those of one group stand side by side in every stratum."""
    n_rows = sum(rows.shape[0] * rows.shape[1] for same in groups for rows in same)
    arrays = []
    for field in schema:
        named = pa.types.is_dictionary(field.type)
        codes: dict[str, int] = {}
        values = np.empty(n_rows, np.int32 if named else field.type.to_pandas_dtype())
        row = 0
        for same in groups:
            n_strata, n_keys = same[0].shape[0], sum(rows.shape[1] for rows in same)
            block = values[row : row + n_strata * n_keys].reshape(n_strata, n_keys)
            row, key = row + block.size, 0
            for rows in same:
                column = rows.columns[field.name]
                block[:, key : key + rows.shape[1]] = _coded(column, codes) if named else column
                key += rows.shape[1]
        mask = values == (_NO_POSITION if field.name == "position" else -1) if field.nullable else None
        array = pa.array(values, mask=mask)
        if named:
            array = pa.DictionaryArray.from_arrays(array, pa.array(list(codes), pa.string()))
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def _coded(names: str | Sequence[str] | None, codes: dict[str, int]) -> np.ndarray:
    """Return the codes of a name, or of one for each stratum, shape (stratum, 1); -1 for none."""
    several = [names] if names is None or isinstance(names, str) else names
    found = [-1 if name is None else codes.setdefault(name, len(codes)) for name in several]
    return np.array(found, dtype=np.int32)[:, None]


_WITH_POSITION = {Scope.POSITION, Scope.FROM_END}
_NO_POSITION = np.iinfo(np.int32).min
