"""Moments: additive sums of a chunk's scores, from which every mean, spread and standard error follows.

They are committed beside the scores, so that no summary has to read a score again. Of the pairs that have a value at a
key (a head at the last position, say), with values x_i, in units g (see below):

- ``n`` pairs, their ``mean`` m, and ``m2`` = sum_i (x_i - m)^2;
- ``units`` of them, of k_g pairs each, with d_g = sum_{i in g} (x_i - m): ``q`` = sum d_g^2, ``r`` = sum d_g k_g and
  ``k2`` = sum k_g^2, for cluster-robust standard errors (Liang & Zeger 1986);
- with the gap y_i = clean - corrupted metric of *all* K_g pairs of a unit in the chunk, their mean M, and
  e_g = sum_{i in g} (y_i - M): ``cross`` = sum d_g e_g, ``r_all`` = sum d_g K_g, ``r_gap`` = sum e_g k_g and ``k_all``
  = sum k_g K_g, for the covariance of a mean with the mean gap, by which it is normalised;
- ``positive``, the pairs with a value above 0; ``min`` and ``max``, and the pairs that have them.

Every sum is kept relative to the mean of its own chunk and shifted when chunks are merged (Chan, Golub, LeVeque 1983),
so that neither many chunks nor a mean far from 0 cost precision. A *unit* is what was sampled: all pairs of one
``group`` (a pair and its mirror), or one pair without a group.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Scope(StrEnum):
    """Which scores of a pair are added to its value: the ``scope`` column of moments and summaries."""

    ROLE = "role"
    """Those at the positions of a role's span."""
    LAST = "last"
    """That at the last position."""
    ALL = "all"
    """Those at every position that has a row."""
    POSITION = "position"
    """Those of every head at one position, counted from the first."""
    FROM_END = "from_end"
    """Those of every head at one position, counted back from the last, which is -1."""


_name = pa.dictionary(pa.int32(), pa.string())
_SUMS = [
    pa.field("n", pa.int64(), nullable=False),
    pa.field("mean", pa.float64(), nullable=False),
    pa.field("m2", pa.float64(), nullable=False),
    pa.field("units", pa.int64(), nullable=False),
    pa.field("q", pa.float64(), nullable=False),
    pa.field("r", pa.float64(), nullable=False),
    pa.field("k2", pa.float64(), nullable=False),
    pa.field("positive", pa.int64(), nullable=False),
]
_GAP_SUMS = [
    pa.field("gap", pa.float64(), nullable=False),  # M: the mean gap of all pairs of the chunk
    pa.field("cross", pa.float64(), nullable=False),
    pa.field("r_all", pa.float64(), nullable=False),
    pa.field("r_gap", pa.float64(), nullable=False),
    pa.field("k_all", pa.float64(), nullable=False),
]

MOMENTS = pa.schema(
    [
        pa.field("component", _name, nullable=False),
        pa.field("scope", _name, nullable=False),  # a Scope
        pa.field("role", _name),  # the role's name where scope is role
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("head", pa.int16()),  # null without heads, and where heads are added up
        pa.field("position", pa.int32()),  # where scope is position or from_end
        *_SUMS,
        *_GAP_SUMS,
        pa.field("min", pa.float64(), nullable=False),  # metric units
        pa.field("max", pa.float64(), nullable=False),
        pa.field("min_pair", pa.int64(), nullable=False),  # the pair_id that has it, the smallest of several
        pa.field("max_pair", pa.int64(), nullable=False),
    ]
)
"""One row per (component, scope, role, layer, head, position) of a chunk."""

STRATA = pa.schema(
    [
        pa.field("kind", _name, nullable=False),  # a StratumKind
        pa.field("stratum", _name, nullable=False),  # the template's or the task's name
        pa.field("component", _name, nullable=False),
        pa.field("scope", _name, nullable=False),  # last or all
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("head", pa.int16()),
        # Without m2: with a few pairs of each of many templates in a chunk, every sum here weighs on its bytes.
        *(field for field in _SUMS if field.name != "m2"),
    ]
)
"""The same of the pairs of each template and of each task, of a chunk."""


class StratumKind(StrEnum):
    """What pairs are divided by: the ``kind`` column of strata."""

    TEMPLATE = "template"
    TASK = "task"


@dataclass(frozen=True)
class PairFacts:
    """What is known of each pair of a chunk, in the order of their ids; arrays of shape (pair,)."""

    pair_id: np.ndarray
    """int64, rising."""
    n_tokens: np.ndarray
    unit: np.ndarray
    """int64; pairs of one unit have the same number."""
    gap: np.ndarray
    """float64, clean minus corrupted metric."""
    template: Sequence[str | None]
    task: Sequence[str | None]


@dataclass(frozen=True)
class DenseScores:
    """Scores of pairs that have rows at equally many positions."""

    pairs: np.ndarray
    """(pair,): indices into the chunk's `PairFacts`."""
    positions: np.ndarray
    """(pair, place): the position of each place; -1 where a pair has no row."""
    roles: np.ndarray
    """(pair, place): a code for the role that holds each; -1 for none."""
    scores: Mapping[str, np.ndarray]
    """By component, (pair, layer, head, place), float32, 0 where there is no row; one head without heads."""


def units_of(pair_id: np.ndarray, group: Sequence[int | None]) -> np.ndarray:
    """Give the pairs of a group one number, and every pair without a group its own; shape (pair,)."""
    numbers: dict[tuple[bool, int], int] = {}
    keys = [(value is None, int(pair) if value is None else value) for pair, value in zip(pair_id, group, strict=True)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class DenseChunk:
    """All scores of a chunk, or of some of its pairs."""

    facts: PairFacts
    blocks: Sequence[DenseScores]
    """Every pair of the facts is in one block."""
    roles: Sequence[str]
    """The names of the roles that codes stand for."""
    heads: Mapping[str, bool]
    """For each component, in the order of the rows, whether it has heads."""


@dataclass(frozen=True)
class PairValues:
    """Values of pairs at keys that the same pairs have."""

    component: str
    scope: Scope
    role: str | None
    layer: np.ndarray
    """(key,), int16; likewise the following."""
    head: np.ndarray
    """-1 where there is none."""
    position: np.ndarray
    """int32; 0 where the scope has none."""
    pairs: np.ndarray
    """(pair,): those that have a value, as indices into the chunk's `PairFacts`, rising."""
    values: np.ndarray
    """(pair, key), float64, in metric units."""

    def by_unit(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add up values within units; ``unit`` numbers those of all pairs of the chunk.

        Returns:
            The units that have a pair with a value, rising; how many such pairs each has; and the sums of their values,
            of shape (unit, key).
        """
        units, place, n_pairs = np.unique(unit[self.pairs], return_inverse=True, return_counts=True)
        order = np.argsort(place, kind="stable")
        first = np.flatnonzero(np.diff(place[order], prepend=-1))
        return units, n_pairs.astype(np.float64), np.add.reduceat(self.values[order], first, axis=0)


def pair_values(chunk: DenseChunk) -> Iterator[PairValues]:
    """Yield the values of all pairs of a chunk in every scope."""
    if not len(chunk.facts.pair_id):
        return
    for component, has_heads in chunk.heads.items():
        yield from _by_scope(chunk, component, has_heads=has_heads)
        for scope in (Scope.POSITION, Scope.FROM_END):
            yield from _by_position(chunk, component, scope)


def chunk_moments(chunk: DenseChunk) -> tuple[pa.Table, pa.Table]:
    """Compute the moments of a chunk; return tables of the schemas `MOMENTS` and `STRATA`."""
    sums = _Sums(chunk.facts)
    moments, strata = _Rows(MOMENTS), _Rows(STRATA)
    for found in pair_values(chunk):
        moments.add(found, sums.of(found.pairs, found.values) | sums.extremes(found.pairs, found.values))
        if found.scope in (Scope.LAST, Scope.ALL):
            for kind, stratum, inside in sums.strata:
                kept = inside[found.pairs]
                if kept.any():
                    part = sums.of(found.pairs[kept], found.values[kept], with_gap=False)
                    strata.add(found, part, kind=kind, stratum=stratum)
    return moments.table(), strata.table()


class _Sums:
    """Sums over the pairs of one chunk."""

    def __init__(self, facts: PairFacts) -> None:
        self._facts = facts
        self._mean_gap = float(facts.gap.mean()) if len(facts.gap) else 0.0
        n_units = int(facts.unit.max(initial=-1)) + 1
        self._pairs_of_unit = np.bincount(facts.unit, minlength=n_units).astype(np.float64)
        self._gap_of_unit = np.bincount(facts.unit, weights=facts.gap - self._mean_gap, minlength=n_units)
        self.strata = [
            (str(kind), name, np.array([value == name for value in values]))
            for kind, values in ((StratumKind.TEMPLATE, facts.template), (StratumKind.TASK, facts.task))
            for name in sorted({value for value in values if value is not None})
        ]
        """Kind, name, and which pairs are in it, for every template and every task."""

    def of(self, held: np.ndarray, values: np.ndarray, *, with_gap: bool = True) -> dict[str, np.ndarray]:
        """Compute the sums over pairs ``held`` (indices) of ``values`` (pair, key); each of shape (key,)."""
        n = len(held)
        mean = values.mean(axis=0)
        deviation = values - mean
        order = np.argsort(self._facts.unit[held], kind="stable")
        unit, first = np.unique(self._facts.unit[held][order], return_index=True)
        k = np.diff(np.append(first, n)).astype(np.float64)
        # With one pair in each unit there is nothing to add up.
        d = deviation if len(unit) == n else np.add.reduceat(deviation[order], first, axis=0)
        if len(unit) == n:
            unit = self._facts.unit[held]
        found = {
            "n": np.int64(n), "mean": mean, "m2": np.einsum("pk,pk->k", deviation, deviation),
            "units": np.int64(len(unit)), "q": np.einsum("uk,uk->k", d, d),
            # The d_g add up to 0: relative to the mean size the sum is the same, and exactly 0 where sizes are equal.
            "r": (k - k.mean()) @ d, "k2": np.float64(k @ k), "positive": np.count_nonzero(values > 0, axis=0),
        }  # fmt: skip
        if with_gap:
            k_all, e = self._pairs_of_unit[unit], self._gap_of_unit[unit]
            found |= {
                "gap": np.float64(self._mean_gap), "cross": e @ d, "r_all": (k_all - k_all.mean()) @ d,
                "r_gap": np.float64(e @ k), "k_all": np.float64(k @ k_all),
            }  # fmt: skip
        return found

    def extremes(self, held: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
        """Find the smallest and the largest value of each key, and whose they are; each of shape (key,)."""
        lowest, highest, ids = values.argmin(axis=0), values.argmax(axis=0), self._facts.pair_id[held]
        keys = np.arange(values.shape[1])
        return {
            "min": values[lowest, keys],
            "max": values[highest, keys],
            "min_pair": ids[lowest],
            "max_pair": ids[highest],
        }


def _by_scope(chunk: DenseChunk, component: str, *, has_heads: bool) -> Iterator[PairValues]:
    """Add up each pair's scores at each role, at the last position and overall."""
    keys: list[tuple[Scope, str | None]] = [(Scope.ROLE, role) for role in chunk.roles]
    keys += [(Scope.LAST, None), (Scope.ALL, None)]
    pairs: list[list[np.ndarray]] = [[] for _ in keys]
    values: list[list[np.ndarray]] = [[] for _ in keys]
    for block in chunk.blocks:
        scores = block.scores[component]
        n_pairs, n_places = scores.shape[0], scores.shape[-1]
        there = block.positions >= 0
        at_last = there & (block.positions == (chunk.facts.n_tokens[block.pairs] - 1)[:, None])
        at_roles = [(block.roles == role) & there for role in range(len(chunk.roles))]
        at = np.stack([*at_roles, at_last, there], axis=-1)
        # In float32, 1e8 + 1 is 1e8.
        added = np.matmul(scores.reshape(n_pairs, -1, n_places).astype(np.float64), at.astype(np.float64))
        held_by: np.ndarray = np.any(at, axis=1)
        for index in range(len(keys)):
            rows = held_by[:, index]
            pairs[index].append(block.pairs[rows])
            values[index].append(added[rows, :, index])
    layer, head = np.indices(chunk.blocks[0].scores[component].shape[1:3]).reshape(2, -1).astype(np.int16)
    for (scope, role), found, parts in zip(keys, pairs, values, strict=True):
        held = np.concatenate(found)
        if len(held):
            order = np.argsort(held, kind="stable")
            yield PairValues(
                component, scope, role, layer, head if has_heads else np.full_like(head, -1),
                np.zeros(len(layer), np.int32), held[order], np.concatenate(parts)[order],
            )  # fmt: skip


def _by_position(chunk: DenseChunk, component: str, scope: Scope) -> Iterator[PairValues]:
    """Add up each pair's scores over heads, position by position; those that the same pairs have come together."""
    n_tokens = chunk.facts.n_tokens
    longest = int(n_tokens.max(initial=0))
    n_layers = chunk.blocks[0].scores[component].shape[1]
    values = np.zeros((len(n_tokens), n_layers, longest))
    there = np.zeros((len(n_tokens), longest), dtype=bool)
    for block in chunk.blocks:
        scores = block.scores[component].sum(axis=2, dtype=np.float64)
        shift = (longest - n_tokens[block.pairs])[:, None] if scope is Scope.FROM_END else 0
        row, place = np.nonzero(block.positions >= 0)
        column = (block.positions + shift)[row, place]
        values[block.pairs[row], :, column] = scores[row, :, place]
        there[block.pairs[row], column] = True
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    which = which.ravel()  # some releases of numpy keep an axis
    for index in range(patterns.shape[1]):
        held, columns = np.flatnonzero(patterns[:, index]), np.flatnonzero(which == index)
        if not len(held):
            continue
        layer, column = np.indices((n_layers, len(columns))).reshape(2, -1)
        position = columns[column] - (longest if scope is Scope.FROM_END else 0)
        yield PairValues(
            component, scope, None, layer.astype(np.int16), np.full(len(layer), -1, np.int16),
            position.astype(np.int32), held, values[held][:, :, columns].reshape(len(held), -1),
        )  # fmt: skip


class _Rows:
    """Columns of a table of sums while it is built."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns: dict[str, list[Any]] = {field.name: [] for field in schema}
        self._names: dict[str, dict[str, int]] = defaultdict(dict)

    def add(self, keys: PairValues, sums: Mapping[str, Any], **more: str) -> None:
        """Add a row for each key; single values stand for all of them."""
        row = {
            "component": keys.component, "scope": str(keys.scope), "role": keys.role, "layer": keys.layer,
            "head": keys.head, "position": keys.position, **more, **sums,
        }  # fmt: skip
        for name, column in self._columns.items():
            value = row[name]
            if name in _NAMES:
                value = -1 if value is None else self._names[name].setdefault(value, len(self._names[name]))
            if name == "position" and keys.scope not in _WITH_POSITION:
                value = _NO_POSITION
            column.append(np.broadcast_to(np.asarray(value), keys.layer.shape))

    def table(self) -> pa.Table:
        """Return the table."""
        arrays = []
        for field in self._schema:
            values = np.concatenate(self._columns[field.name] or [np.zeros(0, np.int32)])
            missing = _NO_POSITION if field.name == "position" else -1
            mask = values == missing if field.nullable else None
            if field.name in _NAMES:
                codes = pa.array(values.astype(np.int32), mask=mask)
                arrays.append(
                    pa.DictionaryArray.from_arrays(codes, pa.array(list(self._names[field.name]), pa.string()))
                )
            else:
                arrays.append(pa.array(values, field.type, mask=mask))
        return pa.Table.from_arrays(arrays, schema=self._schema)


_NAMES = {"component", "scope", "role", "kind", "stratum"}
_WITH_POSITION = {Scope.POSITION, Scope.FROM_END}
_NO_POSITION = np.iinfo(np.int32).min
