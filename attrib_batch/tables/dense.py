"""All scores of a chunk as arrays, and the value that each pair has at every key of the moments."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.tables.moments import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ALL_LAYERS = slice(None)


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
    """By component, (pair, layer, head, place), float32, 0 where there is no row; one head without heads. The last axis
    may be shorter: the scores of the first places are then 0."""


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
    for component in chunk.heads:
        yield from component_values(chunk, component)


def component_values(chunk: DenseChunk, component: str, layers: slice = ALL_LAYERS) -> Iterator[PairValues]:
    """Yield those of one component, of some layers."""
    yield from head_values(chunk, component, layers)
    yield from _by_position(chunk, component, layers)


def head_values(chunk: DenseChunk, component: str, layers: slice = ALL_LAYERS) -> Iterator[PairValues]:
    """Add up each pair's scores of a component at each role, at the last position and overall."""
    if not len(chunk.facts.pair_id):
        return
    keys: list[tuple[Scope, str | None]] = [(Scope.ROLE, role) for role in chunk.roles]
    keys += [(Scope.LAST, None), (Scope.ALL, None)]
    pairs: list[list[np.ndarray]] = [[] for _ in keys]
    values: list[list[np.ndarray]] = [[] for _ in keys]
    for block in chunk.blocks:
        # In float32, 1e8 + 1 is 1e8.
        scores = block.scores[component][:, layers].astype(np.float64)
        n_pairs, n_places = scores.shape[0], scores.shape[-1]
        there = block.positions >= 0
        at_last = there & (block.positions == (chunk.facts.n_tokens[block.pairs] - 1)[:, None])
        at_roles = [(block.roles == role) & there for role in range(len(chunk.roles))]
        at = np.stack([*at_roles, at_last, there], axis=-1)
        n_zeros = at.shape[1] - n_places
        added = np.matmul(scores.reshape(n_pairs, -1, n_places), at[:, n_zeros:].astype(np.float64))
        held_by: np.ndarray = np.any(at, axis=1)
        for index in range(len(keys)):
            rows = held_by[:, index]
            pairs[index].append(block.pairs[rows])
            values[index].append(added[rows, :, index])
    layer, head = _grid(chunk, component, layers)
    head = head if chunk.heads[component] else np.full_like(head, -1)
    for (scope, role), found, parts in zip(keys, pairs, values, strict=True):
        held = np.concatenate(found)
        if len(held):
            order = np.argsort(held, kind="stable")
            position = np.zeros(len(layer), np.int32)
            yield PairValues(
                component, scope, role, layer, head, position, held[order], np.concatenate(parts)[order]
            )  # fmt: skip


def _grid(chunk: DenseChunk, component: str, layers: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return the layers and the heads of a component's keys, each of shape (key,)."""
    n_layers, n_heads = chunk.blocks[0].scores[component].shape[1:3]
    layer = np.arange(n_layers, dtype=np.int16)[layers]
    return np.repeat(layer, n_heads), np.tile(np.arange(n_heads, dtype=np.int16), len(layer))


def _by_position(chunk: DenseChunk, component: str, layers: slice) -> Iterator[PairValues]:
    """Add up each pair's scores over heads, position by position; those that the same pairs have come together."""
    n_tokens = chunk.facts.n_tokens
    if not len(n_tokens):
        return
    added = []
    for block in chunk.blocks:
        sums = block.scores[component][:, layers].astype(np.float64).sum(axis=2)
        added.append(np.pad(sums, ((0, 0), (0, 0), (block.positions.shape[1] - sums.shape[2], 0))))
    layer = np.arange(chunk.blocks[0].scores[component].shape[1], dtype=np.int16)[layers]
    longest = int(n_tokens.max())
    for scope in (Scope.POSITION, Scope.FROM_END):
        values = np.zeros((len(n_tokens), len(layer), longest))
        there = np.zeros((len(n_tokens), longest), dtype=bool)
        for block, sums in zip(chunk.blocks, added, strict=True):
            shift = (longest - n_tokens[block.pairs])[:, None] if scope is Scope.FROM_END else 0
            columns = np.where(block.positions >= 0, block.positions + shift, -1)
            for pairs, found, column in _same_columns(block.pairs, sums, columns):
                values[pairs[:, None, None], np.arange(len(layer))[:, None], column] = found
                there[pairs[:, None], column] = True
        of_pairs: dict[bytes, list[int]] = defaultdict(list)
        for place in np.flatnonzero(there.any(axis=0)).tolist():
            of_pairs[there[:, place].tobytes()].append(place)
        for places in of_pairs.values():
            column = np.array(places)
            held = np.flatnonzero(there[:, column[0]])
            position = np.tile(column, len(layer)) - (longest if scope is Scope.FROM_END else 0)
            yield PairValues(
                component, scope, None, np.repeat(layer, len(column)), np.full(len(position), -1, np.int16),
                position.astype(np.int32), held, values[np.ix_(held, np.arange(len(layer)), column)].reshape(
                    len(held), -1
                ),
            )  # fmt: skip


def _same_columns(
    pairs: np.ndarray, values: np.ndarray, columns: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pairs whose places go into the same columns, their values and these; a column of -1 is no place."""
    if (columns == columns[0]).all():
        patterns, which = columns[:1], np.zeros(len(pairs), dtype=int)
    else:
        patterns, which = np.unique(columns, axis=0, return_inverse=True)
    for index, column in enumerate(patterns):
        here = which.ravel() == index
        kept = column >= 0
        yield pairs[here], values[here][:, :, kept], column[kept]
