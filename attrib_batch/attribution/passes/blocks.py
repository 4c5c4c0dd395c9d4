"""Which queries are multiplied with which keys at once: the blocks of a packed pass's attention.

A packed pass has no axis of rows: the new tokens of all its rows stand one behind the other. A row attends to itself,
and to the stretches of keys that it shares with other rows, its ancestors. Whatever attends to the same stretch stands
next to each other, so a *group* is a range of queries and a range of keys. Groups of like size are computed together,
padded to the largest of them; that padding costs attention alone, no other part of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib_batch.attribution.passes.tree import Node
from attrib_batch.models.devices import on_device

PADDED_AREA = 1.5
"""Groups are padded to a common size while their products grow by no more than this factor."""
QUERIES_AT_ONCE = 256
"""Causal groups of more queries are cut, so that later keys are not multiplied at all."""


class Group(NamedTuple):
    """A range of queries that all see the same range of keys, or, where it is causal, each the keys up to itself."""

    query: int
    n_queries: int
    key: int
    n_keys: int

    @property
    def area(self) -> int:
        """How many products of a query with a key it takes."""
        return self.n_queries * self.n_keys


def groups_of(
    nodes: Sequence[Node | None],
    keys_of: Mapping[Node, tuple[int, int]],
    starts: Sequence[int],
    ends: Sequence[int],
) -> list[Group]:
    """Return which tokens see which keys; neighbours that see the same are one group.

    Args:
        nodes: of each stretch of a pass, what it sees.
        keys_of: where the keys of that begin, and how many they are.
        starts: where each stretch begins.
        ends: where it ends.
    """
    groups = []
    for node, members in groupby(range(len(nodes)), nodes.__getitem__):
        if node is not None:
            indices = list(members)
            query = starts[indices[0]]
            groups.append(Group(query, ends[indices[-1]] - query, *keys_of[node]))
    return groups


@dataclass(frozen=True)
class Side:
    """The queries, or the keys, of a block, as places among the tokens they are taken from."""

    shape: tuple[int, int]
    """Groups, and places of each."""
    index: Int[Tensor, " place"] | slice
    """For each place its token; any token where a place is padding. A slice where there is one group."""
    kept: Int[Tensor, " kept"] | None
    """The places that are no padding; None if all are."""
    tokens: Int[Tensor, " kept"] | slice
    """Their tokens."""

    def gather(self, values: Tensor) -> Tensor:
        """Take (head, token, feature) as (head, group, place, feature)."""
        found = values[:, self.index] if isinstance(self.index, slice) else values.index_select(1, self.index)
        return found.view(found.shape[0], *self.shape, *found.shape[2:])

    def put(self, out: Tensor, values: Tensor) -> None:
        """Write (head, group, place, ...) where they belong in (head, token, ...)."""
        flat = self._kept(values)
        if isinstance(self.tokens, slice):
            out[:, self.tokens] = flat
        else:
            out.index_copy_(1, self.tokens, flat)

    def add(self, out: Tensor, values: Tensor) -> None:
        """Add (head, group, place, ...) where they belong in (head, token, ...)."""
        flat = self._kept(values)
        if isinstance(self.tokens, slice):
            out[:, self.tokens] += flat
        else:
            out.index_add_(1, self.tokens, flat)

    def _kept(self, values: Tensor) -> Tensor:
        flat = values.flatten(1, 2)
        return flat if self.kept is None else flat.index_select(1, self.kept)


@dataclass(frozen=True)
class Block:
    """Groups that are computed at once."""

    queries: Side
    keys: Side
    visible: Bool[Tensor, "group query key"] | None
    """Which keys a query sees; None where it sees all."""


@dataclass(frozen=True)
class Level:
    """What the queries of a pass attend to at one depth: the stretches of ancestors there, or their own rows."""

    groups: Sequence[Group]
    query_positions: Int[np.ndarray, " query"]
    """The position of every query of the pass in its prompt."""
    key_positions: Int[np.ndarray, " key"]
    causal: bool = False

    def hides(self, window: int | None) -> bool:
        """Return whether a window hides any key that is before a query."""
        return window is not None and bool(self.query_positions.max() - self.key_positions.min() >= window)

    def blocks(self, window: int | None, *, n_heads: int, most_products: int, device: torch.device) -> list[Block]:
        """Build the blocks for a layer.

        Args:
            window: how many positions a query sees, itself included; None for all before it.
            n_heads: the query heads of a layer.
            most_products: most products of a query with a key, over all heads, at once.
            device: where the layer is.
        """
        pieces = list(self._cut(max(1, most_products // n_heads)))
        if not self.hides(window):
            window = None
        return [self._block(together, window, device) for together in _alike(pieces, max(1, most_products // n_heads))]

    def _cut(self, most: int) -> Iterator[Group]:
        """Cut groups that are too large, by their queries."""
        for group in self.groups:
            size = max(1, min(group.n_queries, most // max(1, group.n_keys)))
            if self.causal and group.n_queries > QUERIES_AT_ONCE:
                size = min(size, QUERIES_AT_ONCE)
            for start in range(0, group.n_queries, size):
                n_queries = min(size, group.n_queries - start)
                n_keys = group.n_keys - group.n_queries + start + n_queries if self.causal else group.n_keys
                yield Group(group.query + start, n_queries, group.key, n_keys)

    def _block(self, groups: Sequence[Group], window: int | None, device: torch.device) -> Block:
        query = np.array([group.query for group in groups])
        n_queries = np.array([group.n_queries for group in groups])
        key = np.array([group.key for group in groups])
        n_keys = np.array([group.n_keys for group in groups])
        visible = None
        if self.causal or window is not None or (n_keys != n_keys[0]).any() or (n_queries != n_queries[0]).any():
            q_index, q_real = _places(query, n_queries)
            k_index, k_real = _places(key, n_keys)
            distance = self.query_positions[q_index][:, :, None] - self.key_positions[k_index][:, None, :]
            # A padded query sees nothing, so that it adds nothing to the gradients of keys.
            seen = q_real[:, :, None] & k_real[:, None, :] & (distance >= 0)
            if window is not None:
                seen &= distance < window
            if not seen.all():
                visible = on_device(seen, device)
        return Block(_side(query, n_queries, device), _side(key, n_keys, device), visible)


def _alike(groups: list[Group], most: int) -> Iterator[list[Group]]:
    """Divide groups into those of like size, which one block computes."""
    together: list[Group] = []
    area = widest_q = widest_k = 0
    for group in sorted(groups, key=lambda group: (group.n_keys, group.n_queries, group.query), reverse=True):
        queries, keys = max(widest_q, group.n_queries), max(widest_k, group.n_keys)
        padded = queries * keys * (len(together) + 1)
        if together and (padded > PADDED_AREA * (area + group.area) or padded > most):
            yield sorted(together, key=lambda group: group.query)
            together, area, queries, keys = [], 0, group.n_queries, group.n_keys
        together.append(group)
        area, widest_q, widest_k = area + group.area, queries, keys
    if together:
        yield sorted(together, key=lambda group: group.query)


def _places(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the token of every place (group, place), and which places are no padding."""
    place = np.arange(count.max())[None, :]
    real = place < count[:, None]
    return np.where(real, start[:, None] + place, start[:, None]), real


def _side(start: np.ndarray, count: np.ndarray, device: torch.device) -> Side:
    shape = (len(start), int(count.max()))
    if len(start) == 1 or (count.min() == count.max() and (np.diff(start) == count[0]).all()):
        # One range, cut into equal parts.
        whole = slice(int(start[0]), int(start[-1] + count[-1]))
        return Side(shape, whole, None, whole)
    index, real = _places(start, count)
    flat = on_device(index.ravel(), device)
    if real.all():
        return Side(shape, flat, None, flat)
    return Side(shape, flat, on_device(np.flatnonzero(real), device), on_device(index[real], device))
