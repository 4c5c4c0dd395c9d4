"""What scoring a micro-batch gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from attrib_batch.spec import Component


@dataclass(frozen=True)
class Scores:
    """Scores and metrics of pairs of any shapes, on the CPU.

    An *entry* is a position of a pair, from its first difference on; those of a pair stand one behind the other.
    """

    scores: dict[Component, Float[np.ndarray, "layer entry head"]]
    """In float32 and metric units; one head where a component has none."""
    count: Int[np.ndarray, " pair"]
    """The entries of each pair."""
    clean_metric: Float[np.ndarray, " pair"]
    """In float64, as ``corrupted_metric``."""
    corrupted_metric: Float[np.ndarray, " pair"]
    positions: Int[np.ndarray, " entry"] | None = None
    """The position of each entry, where they are not all from a pair's first difference on."""
    estimates: dict[Component, Float[np.ndarray, "layer entry head"]] | None = None
    """What was estimated where a score is measured instead, NaN elsewhere; None where a method measures none or all."""

    def of_pairs(self, pairs: Int[np.ndarray, " some"]) -> BatchScores:
        """Return the scores of the pairs at these indices, which have one length and one first difference."""
        count = self.count[pairs]
        place = np.arange(count.max(initial=0))
        there = place < count[:, None]
        entry = np.where(there, (np.cumsum(self.count) - self.count)[pairs][:, None] + place, 0)
        scores, estimates = (
            {name: np.ascontiguousarray(values[:, entry].transpose(1, 0, 3, 2)) for name, values in of.items()}
            for of in (self.scores, self.estimates or {})
        )
        positions = None
        if self.positions is not None:
            positions = np.where(there, self.positions[entry], -1)
            scores = {component: np.where(there[:, None, None], values, 0) for component, values in scores.items()}
        return BatchScores(scores, self.clean_metric[pairs], self.corrupted_metric[pairs], positions, estimates or None)


@dataclass(frozen=True)
class ActivationSums:
    """Sums over tokens of pairs, by role."""

    roles: tuple[str | None, ...]
    count: Int[np.ndarray, " role"]
    totals: Float[np.ndarray, "layer role head feature"]
    """In float64; one head where a component has none."""
    entering: Float[np.ndarray, "role d_model"]
    """Of what enters the first layer."""


@dataclass(frozen=True)
class BatchScores:
    """Scores and baselines of a micro-batch, on the CPU.

    A component without heads has a head axis of size 1.
    """

    scores: dict[Component, Float[np.ndarray, "pair layer head position"]]
    """In float32 and metric units."""
    clean_metric: Float[np.ndarray, " pair"]
    """In float64, as ``corrupted_metric``."""
    corrupted_metric: Float[np.ndarray, " pair"]
    positions: Int[np.ndarray, "pair position"] | None = None
    """The position in its prompt of each score of a pair, in order, then -1 where a pair has fewer than others.

    None where scores are those of every position from the first difference on; before it they are 0.
    """
    estimates: dict[Component, Float[np.ndarray, "pair layer head position"]] | None = None
    """What was estimated where a score is measured instead, NaN elsewhere; None where a method measures none or all."""
    sums: ActivationSums | None = None
    """Of a method that adds up activations of the pairs with finite ones; it has no scores but what says which."""

    def metrics_finite(self) -> Bool[np.ndarray, " pair"]:
        """Return which pairs have finite metrics."""
        ok: np.ndarray = np.isfinite(self.clean_metric) & np.isfinite(self.corrupted_metric)
        return ok

    def finite(self) -> Bool[np.ndarray, " pair"]:
        """Return which pairs have finite metrics and scores throughout."""
        ok = self.metrics_finite()
        for values in self.scores.values():
            ok &= np.isfinite(values).all(axis=(1, 2, 3))
        return ok

    def select(self, keep: Bool[np.ndarray, " pair"] | Int[np.ndarray, " kept"]) -> BatchScores:
        """Return the pairs where ``keep`` holds, or those at the indices ``keep``."""
        return BatchScores(
            {component: values[keep] for component, values in self.scores.items()},
            self.clean_metric[keep],
            self.corrupted_metric[keep],
            None if self.positions is None else self.positions[keep],
            None if self.estimates is None else {name: values[keep] for name, values in self.estimates.items()},
            self.sums,
        )

    @classmethod
    def joined(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """Return the pairs of ``parts``, which have the same components and shape, one part after the other."""
        parts = _of_one_width(parts)
        positions = [part.positions for part in parts if part.positions is not None]
        estimates = [part.estimates for part in parts if part.estimates is not None]
        return cls(
            {component: np.concatenate([part.scores[component] for part in parts]) for component in parts[0].scores},
            np.concatenate([part.clean_metric for part in parts]),
            np.concatenate([part.corrupted_metric for part in parts]),
            np.concatenate(positions) if positions else None,
            {name: np.concatenate([one[name] for one in estimates]) for name in estimates[0]} if estimates else None,
        )


def _of_one_width(parts: Sequence[BatchScores]) -> Sequence[BatchScores]:
    """Return parts whose pairs have the same number of places for positions."""
    width = max((part.positions.shape[1] for part in parts if part.positions is not None), default=0)
    wide = []
    for part in parts:
        if part.positions is None:
            return parts
        more = [(0, 0), (0, width - part.positions.shape[1])]
        wide.append(
            replace(
                part,
                scores={name: np.pad(values, [(0, 0), (0, 0), *more]) for name, values in part.scores.items()},
                positions=np.pad(part.positions, more, constant_values=-1),
            )
        )
    return wide


Result = BatchScores | Scores | Sequence[Scores]
"""What a scoring function returns: one result of all its pairs, or several for parts of them in their order."""
