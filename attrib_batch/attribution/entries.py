"""Which token of a pass each score belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from attrib_batch.attribution.passes import Layout
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.pairs.encoding.encode import EncodedPair


@dataclass(frozen=True)
class Entries:
    """The positions that pairs are scored at: for each pair those from its first difference on, pair after pair."""

    first: Int[np.ndarray, " pair"]
    count: Int[np.ndarray, " pair"]

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair]) -> Entries:
        """List the positions of ``pairs``."""
        first = np.array([pair.first_difference for pair in pairs], dtype=np.int64)
        return cls(first, np.array([pair.n_tokens for pair in pairs], dtype=np.int64) - first)

    def index(self, rows: Sequence[int], *layouts: Layout) -> Index:
        """Return where the entries are in the tensors of passes that stand one behind the other.

        Args:
            rows: for each pair the row that holds it; the rows of later layouts count on from those of earlier ones.
            layouts: of the passes.
        """
        origins, before = [], 0
        for layout in layouts:
            origins.append(layout.origin + before)
            before += layout.n_tokens
        return Index(ranges(np.concatenate(origins)[np.asarray(rows)] + self.first, self.count))

    @property
    def pair(self) -> Int[np.ndarray, " entry"]:
        """For each entry its pair."""
        return np.repeat(np.arange(len(self.count)), self.count)

    @property
    def position(self) -> Int[np.ndarray, " entry"]:
        """For each entry its position in its prompt."""
        return ranges(self.first, self.count)
