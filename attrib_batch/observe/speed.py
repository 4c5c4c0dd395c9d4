"""How fast the models of a run are worked on, and the time left that follows: for the screen and for ``status``."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Speeds:
    """The speed of each model, and which models are at work now."""

    of: Mapping[str, float]
    """Pairs per second, failed ones included, of each model that has committed any; more than 0."""
    at_work: frozenset[str]
    """Models that have workers now; they are worked on side by side."""

    @property
    def now(self) -> float | None:
        """Pairs per second of the models at work, together; None while no speed of theirs is known."""
        known = [speed for model, speed in self.of.items() if model in self.at_work]
        return sum(known) if known else None

    def seconds_left(self, left: Mapping[str, int]) -> float | None:
        """Estimate the time to the end.

        The models at work end side by side, so the longest of them counts; those that are not begin after them, one
        after the other. A model whose speed is not known is taken to need as long for a pair as the others on average.

        Args:
            left: pairs of each model that are still to be committed.

        Returns:
            Seconds; None while no speed is known.
        """
        if not self.of:
            return None
        usual = fmean(1 / speed for speed in self.of.values())

        def seconds(model: str) -> float:
            return left[model] * (1 / self.of[model] if model in self.of else usual)

        longest = max((seconds(model) for model in left if model in self.at_work), default=0.0)
        return longest + sum(seconds(model) for model in left if model not in self.at_work)
