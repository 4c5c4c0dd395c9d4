"""Build the score rows of a chunk: whole columns at a time, in parts of whole pairs.

A part is a row group of the scores file. Parts are built and encoded apart from each other, by as many threads as a
worker has, and how they are cut does not depend on how many those are: the file is the same to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from attrib_batch.spec import Component
from attrib_batch.storage.parquet import ROW_GROUP_ROWS
from attrib_batch.tables import SCORES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

    from attrib_batch.attribution.engine import ScoredBatch
    from attrib_batch.pairs.encoding.encode import EncodedPair

_COMPONENT_NAMES = pa.array([str(component) for component in Component])
_COMPONENT_CODES = {component: code for code, component in enumerate(Component)}
_KEPT_ROWS = 1 << 16
"""Most rows of a pair whose index columns are kept for the next pair of its shape: 1 MB."""

Layout = tuple[tuple[Component, int, int], ...]
"""The components of a method, with the numbers of their layers and heads; one head without heads."""


def roles_of(batches: Sequence[ScoredBatch]) -> list[str]:
    """Return the names of the roles of pairs; a role's code is its place among them."""
    return sorted({role for batch in batches for pair in batch.pairs for role in pair.roles if role is not None})


def places_of(batch: ScoredBatch) -> Int[np.ndarray, "pair place"]:
    """Return the position of each place along the last axis of a batch's rows; -1 where a pair has no row."""
    if batch.result.positions is not None:
        return batch.result.positions.astype(np.int32)
    n_tokens = batch.pairs[0].n_tokens
    return np.broadcast_to(np.arange(n_tokens, dtype=np.int32), (len(batch.pairs), n_tokens))


@dataclass(frozen=True)
class _PairRows:
    """The rows of one pair: (component, layer, head) by position."""

    pair: EncodedPair
    batch: ScoredBatch
    index: int
    """Its place in the batch."""
    places: Int[np.ndarray, " place"]
    """The positions that have rows, rising."""
    layout: Layout

    @cached_property
    def n_rows(self) -> int:
        return len(self.places) * sum(n_layers * n_heads for _, n_layers, n_heads in self.layout)

    def write_scores(self, out: np.ndarray) -> None:
        """Write the scores into an array of as many zeros; those of a shared prefix stay 0."""
        whole, row = out.reshape(-1, len(self.places)), 0
        for component, n_layers, n_heads in self.layout:
            given = self.batch.result.scores[component][self.index].reshape(n_layers * n_heads, -1)
            block = whole[row : row + len(given)]
            if self.batch.result.positions is None:
                block[:, len(self.places) - given.shape[1] :] = given
            else:
                block[:] = given[:, self.batch.result.positions[self.index] >= 0]
            row += len(given)


class ScoreParts:
    """The scores table of a chunk in parts, in the order of the pairs' ids.

    Positions of the shared prefix are rows like any other; their score is exactly 0. A position that was not asked for
    has no row, so a pair may have none at all.
    """

    def __init__(self, batches: Sequence[ScoredBatch], part_rows: int | None = None) -> None:
        """Cut the rows of a chunk into parts; none is built yet.

        Args:
            batches: its scored pairs.
            part_rows: most rows of a part; one pair alone may have more. A row group's where absent.
        """
        part_rows = part_rows or ROW_GROUP_ROWS
        roles = roles_of(batches)
        self._roles = pa.array(roles, pa.string())
        self._role_codes: dict[str | None, int] = {None: -1, **{role: code for code, role in enumerate(roles)}}
        self._parts: list[list[_PairRows]] = []
        self.n_rows = 0
        """Rows of all parts."""
        rows_in_part = part_rows
        for pair in sorted(_pairs_with_rows(batches), key=lambda pair: pair.pair.pair_id):
            if not self._parts or rows_in_part + pair.n_rows > part_rows:
                self._parts.append([])
                rows_in_part = 0
            self._parts[-1].append(pair)
            rows_in_part += pair.n_rows
            self.n_rows += pair.n_rows

    def __len__(self) -> int:
        """Return how many parts there are; at least one, which may be empty."""
        return max(1, len(self._parts))

    def table(self, part: int) -> pa.Table:
        """Build the rows of a part."""
        if not self._parts:
            return SCORES.empty_table()
        pairs = self._parts[part]
        sizes = np.array([pair.n_rows for pair in pairs])
        ends = np.cumsum(sizes).tolist()
        score = np.zeros(ends[-1], dtype=np.float32)
        for pair, start, end in zip(pairs, [0, *ends[:-1]], ends, strict=True):
            pair.write_scores(score[start:end])
        columns = [self._index_columns(pair) for pair in pairs]
        component, layer, head, position, role = (np.concatenate(column) for column in zip(*columns, strict=True))
        ids = np.array([pair.pair.pair_id for pair in pairs], dtype=np.int64)
        return pa.Table.from_arrays(
            [
                pa.array(np.repeat(ids, sizes)),
                pa.DictionaryArray.from_arrays(pa.array(component), _COMPONENT_NAMES),
                pa.array(layer),
                pa.array(head, mask=head < 0),
                pa.array(position),
                pa.DictionaryArray.from_arrays(pa.array(role, mask=role < 0), self._roles),
                pa.array(score),
            ],
            schema=SCORES,
        )

    def _index_columns(self, pair: _PairRows) -> tuple[np.ndarray, ...]:
        """Return component, layer, head, position and role of a pair's rows."""
        make = _index_columns if pair.n_rows <= _KEPT_ROWS else _index_columns.__wrapped__
        codes = tuple(self._role_codes[role] for role in pair.pair.roles)
        return make(pair.layout, pair.places.tobytes(), codes)


def score_rows(batches: Sequence[ScoredBatch]) -> pa.Table:
    """Build the scores table of a chunk as a whole."""
    parts = ScoreParts(batches)
    return pa.concat_tables([parts.table(part) for part in range(len(parts))])


def _pairs_with_rows(batches: Sequence[ScoredBatch]) -> list[_PairRows]:
    found = []
    for batch in batches:
        layout = tuple((component, *scores.shape[1:3]) for component, scores in batch.result.scores.items())
        for index, (pair, places) in enumerate(zip(batch.pairs, places_of(batch), strict=True)):
            rows = _PairRows(pair, batch, index, places[places >= 0], layout)
            if rows.n_rows:
                found.append(rows)
    return found


@lru_cache(maxsize=64)
def _index_columns(layout: Layout, places: bytes, role_codes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Build the index columns of pairs of one shape; all of them share the arrays, which nobody writes.

    Args:
        layout: what there are scores of.
        places: the positions that have rows, as the bytes of an int32 array.
        role_codes: for each position of the prompt, the code of its role.
    """
    positions = np.frombuffer(places, dtype=np.int32)
    n_blocks = [n_layers * n_heads for _, n_layers, n_heads in layout]
    component = np.repeat([_COMPONENT_CODES[component] for component, _, _ in layout], n_blocks).astype(np.int32)
    layer = np.concatenate([np.repeat(np.arange(n_layers), n_heads) for _, n_layers, n_heads in layout])
    head = np.concatenate(
        [
            np.tile(np.arange(n_heads) if component.has_heads else [-1], n_layers)
            for component, n_layers, n_heads in layout
        ]
    )
    codes = np.array(role_codes, dtype=np.int32)[positions]
    return (
        np.repeat(component, len(positions)),
        np.repeat(layer.astype(np.int16), len(positions)),
        np.repeat(head.astype(np.int16), len(positions)),
        np.tile(positions, sum(n_blocks)),
        np.tile(codes, sum(n_blocks)),
    )
