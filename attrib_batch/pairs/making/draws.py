"""Draw at random: the same numbers for the same seed, on every platform and in every version of Python."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Item = TypeVar("Item")


class Draws:
    """Numbers and things drawn uniformly."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - no secret depends on it

    def below(self, n: int) -> int:
        """Return an integer from 0 to ``n`` - 1."""
        # Of all of `random`, Python promises only random() the same numbers in every version.
        return int(self._rng.random() * n)

    def one(self, items: Sequence[Item]) -> Item:
        """Return one of the items."""
        return items[self.below(len(items))]

    def distinct(self, items: Sequence[Item], n: int, besides: Sequence[Item] = ()) -> list[Item]:
        """Return ``n`` different items, in the order in which they are drawn, none of them one of ``besides``."""
        drawn: list[Item] = []
        while len(drawn) < n:
            item = self.one(items)
            if item not in drawn and item not in besides:
                drawn.append(item)
        return drawn
