"""What scoring a micro-batch gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from attrib_batch.spec import Component


@dataclass(frozen=True)
class BatchScores:
    """Scores and baselines of a micro-batch, on the CPU.

    ``scores[component]`` is float32 (pair, layer, head, position), positions from the first difference on; a component
    without heads has a head axis of size 1. Metrics are float64 (pair,).
    """

    scores: dict[Component, Float[np.ndarray, "pair layer head position"]]
    clean_metric: Float[np.ndarray, " pair"]
    corrupted_metric: Float[np.ndarray, " pair"]

    def metrics_finite(self) -> np.ndarray:
        """Return which pairs have finite metrics; bool (pair,)."""
        ok: np.ndarray = np.isfinite(self.clean_metric) & np.isfinite(self.corrupted_metric)
        return ok

    def finite(self) -> np.ndarray:
        """Return which pairs have finite metrics and scores throughout; bool (pair,)."""
        ok = self.metrics_finite()
        for values in self.scores.values():
            ok &= np.isfinite(values).all(axis=(1, 2, 3))
        return ok

    def select(self, keep: np.ndarray) -> BatchScores:
        """Return the pairs where ``keep``, a bool (pair,), holds, or those at ``keep``, an integer array."""
        return BatchScores(
            {component: values[keep] for component, values in self.scores.items()},
            self.clean_metric[keep],
            self.corrupted_metric[keep],
        )

    def from_position(self, first: int) -> BatchScores:
        """Return the scores of the positions from ``first`` on, counted from the first one there is."""
        return replace(self, scores={component: values[..., first:] for component, values in self.scores.items()})

    @classmethod
    def joined(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """The pairs of ``parts``, which have the same components and shape, one part after the other."""
        return cls(
            {component: np.concatenate([part.scores[component] for part in parts]) for component in parts[0].scores},
            np.concatenate([part.clean_metric for part in parts]),
            np.concatenate([part.corrupted_metric for part in parts]),
        )
