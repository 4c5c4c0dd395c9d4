"""Timing that a busy machine disturbs little: alternating rounds, and ratios within a round."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Ratio:
    """How many times as long one variant takes as another: over the rounds, the median and the extremes."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timings:
    """Seconds of every variant in every round."""

    seconds: Mapping[str, list[float]]

    def ratio(self, slow: str, fast: str) -> Ratio:
        """The time of ``slow`` over the time of ``fast``, each round compared with itself."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def of_fastest(self, slow: str, fast: str) -> float:
        """The fastest round of ``slow`` over the fastest round of ``fast``: what is left when disturbances are not."""
        return min(self.seconds[slow]) / min(self.seconds[fast])


def alternate(variants: Mapping[str, Callable[[], Any]], n_rounds: int) -> Timings:
    """Run A B C A B C ...; the variants must have run once before, so that no round pays for warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(n_rounds):
        for name, run in variants.items():
            gc.collect()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)
