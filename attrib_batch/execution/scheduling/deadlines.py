"""How long a worker may take before it is taken for hung: from the speed seen so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.spec import Cell

SLACK = 10.0
"""How many times longer than the slowest seen so far."""
HUNG_SLACK = 4.0
"""How many times longer still for a task, with every worker that was taken for hung on it: it may just be slow."""


@dataclass
class Deadlines:
    """What a worker is allowed, in seconds."""

    shortest: float
    """However fast others were."""
    longest: float
    """However slow others were, and as long as nothing is known."""
    patience: float = 0.0
    """On top of all that: how long a worker may wait for a store that answers nothing, which is no pair's fault."""
    _slowest: dict[tuple[Cell, ...], float] = field(default_factory=dict, init=False)
    """Most seconds per pair so far. Methods and datasets differ too much in it to be one."""

    def learn(self, assignment: Assignment, seconds: float) -> None:
        """Take note that a task took ``seconds``; a probe is too short to say anything."""
        if assignment.probe is None:
            cells = _cells(assignment)
            self._slowest[cells] = max(self._slowest.get(cells, 0.0), seconds / assignment.n_pairs)

    def allowance(self, in_hand: Iterable[Assignment], *, hung: int = 0) -> float:
        """Return the seconds until a worker must have finished one of the assignments it has in hand."""
        expected = 0.0
        for assignment in in_hand:
            per_pair = self._slowest.get(_cells(assignment))
            if per_pair is None:
                return self.longest + self.patience
            expected += per_pair * assignment.n_pairs
        return min(self.longest, max(self.shortest, SLACK * expected) * HUNG_SLACK**hung) + self.patience


class NoDeadlines(Deadlines):
    """Allows any time: for workers that cannot be ended."""

    def __init__(self) -> None:
        """Allow any time."""
        super().__init__(math.inf, math.inf)

    def allowance(self, in_hand: Iterable[Assignment], *, hung: int = 0) -> float:
        """Return infinity."""
        del in_hand, hung
        return math.inf


def _cells(assignment: Assignment) -> tuple[Cell, ...]:
    return tuple(chunk.cell for chunk in assignment.task)
