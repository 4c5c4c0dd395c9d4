"""A task with which a worker was lost: try it again, then find the pairs that end workers, and leave those out.

The second worker computes the task in smaller micro-batches: the kernel ends a process that runs out of memory without
a word, and then no pair is to blame. Where that does not help, pairs are searched.

The search is a bisection. A range of pairs that ended a worker is halved; a half that a worker survives is clean, and
then the other half is to blame without being tried whole. A pair that ends ``PAIR_ATTEMPTS`` workers on its own is left
out for good. What ended one worker by chance (a lost node) is found out at the end of the search: the pair it leads to
survives alone. One pair among n costs at most log2(n) workers beyond the first attempts, and the work of 2n pairs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attrib_batch.execution.scheduling.assignment import Assignment, LeftOut

if TYPE_CHECKING:
    from attrib_batch.execution.planning.plan import Task

WHOLE_ATTEMPTS = 2
"""Workers that may be lost with a task in hand before its pairs are searched."""
PAIR_ATTEMPTS = 2
"""Workers that may be lost with one pair alone in hand before it is left out."""
MAX_LEFT_OUT = 16
"""Pairs of one task that are searched for; with more, the rest of the task is given up."""
FRUITLESS_SEARCHES = 2
"""Searches of one task that may find no pair; a task that still ends workers then ends the run."""
HALVINGS = 3
"""How often micro-batches are halved after the first loss, and once more after every search that found no pair."""


@dataclass(frozen=True)
class _Range:
    """The rows [start, stop), to be probed."""

    start: int
    stop: int
    or_next: bool
    """Whether the range after it is known to end workers if this one does not."""


@dataclass
class Suspect:
    """What is known about a task with which workers were lost."""

    task: Task
    hung: int = 0
    """How many of the lost workers were taken for hung."""
    _whole_losses: int = field(default=0, init=False)
    _left_out: dict[int, LeftOut] = field(default_factory=dict, init=False)
    _search: list[_Range] = field(default_factory=list, init=False)
    """Ranges to be probed, the next one last."""
    _found: bool = field(default=False, init=False)
    """Whether the search under way has found a pair."""
    _fruitless: int = field(default=0, init=False)
    _lost_alone: Counter[int] = field(default_factory=Counter, init=False)
    """Workers lost with one row alone, by row."""
    _lost: list[tuple[int, int]] = field(default_factory=list, init=False)
    """The rows that each lost worker had in hand."""
    _message: str = field(default="", init=False)
    _hopeless: bool = field(default=False, init=False)

    def next(self) -> Assignment:
        """Return what to try next: the whole task, or a probe of a part of it."""
        probe = (self._search[-1].start, self._search[-1].stop) if self._search else None
        halvings = HALVINGS * (1 + self._fruitless) if self._lost else 0
        return Assignment(self.task, tuple(self._left_out.values()), probe, halvings)

    @property
    def only_together(self) -> str | None:
        """Say that no pair ends a worker alone and all of them do together, if that is so."""
        if not self._hopeless or self._left_out:
            return None
        start, stop = self._whole
        return (
            f"{len(self._lost)} workers were lost with pairs of rows {start} to {stop - 1} in hand, in micro-batches "
            f"of 1/{2 ** (HALVINGS * (1 + self._fruitless))} of their size too, and none with one of these pairs "
            "alone: memory seems to be too short for this model"
        )

    @property
    def given_up(self) -> tuple[LeftOut, ...] | None:
        """Every pair of the task, if it is not to be tried any more."""
        start, stop = self._whole
        if self._rows(start, stop) and not self._hopeless:
            return None
        message = f"{self._message} (no worker survived the pairs of rows {start} to {stop - 1} together)"
        return tuple(self._left_out.get(row) or LeftOut(row, self._whole_losses, message) for row in range(start, stop))

    def survived(self) -> None:
        """Record that a worker survived the range of `next`."""
        clean = self._search.pop()
        rows = self._rows(clean.start, clean.stop)
        if len(rows) == 1:
            self._lost_alone[rows[0]] = 0
        if clean.or_next and self._search:
            guilty = self._search.pop()
            if not self._halve(guilty):
                self._search.append(guilty)  # a single pair is left out only for what it did alone
        self._search_may_end()

    def lost(self, message: str) -> None:
        """Record that a worker was lost with the assignment of `next` in hand."""
        self._message = message
        if not self._search:
            self._lost.append(self._whole)
            self._whole_losses += 1
            self._hopeless = self._fruitless >= FRUITLESS_SEARCHES or len(self._left_out) >= MAX_LEFT_OUT
            if self._whole_losses >= WHOLE_ATTEMPTS and not self._hopeless:
                self._found = False
                whole = _Range(*self._whole, or_next=False)
                if not self._halve(whole):
                    self._search.append(whole)
            return
        ended = self._search.pop()
        self._lost.append((ended.start, ended.stop))
        if not self._halve(ended):
            self._lost_alone_again(ended)
        self._search_may_end()

    def _lost_alone_again(self, ended: _Range) -> None:
        (row,) = self._rows(ended.start, ended.stop)
        self._lost_alone[row] += 1
        if self._lost_alone[row] < PAIR_ATTEMPTS:
            self._search.append(ended)
            return
        self._found = True
        attempts = sum(start <= row < stop for start, stop in self._lost)
        self._left_out[row] = LeftOut(row, attempts, self._message)
        if len(self._left_out) >= MAX_LEFT_OUT:
            self._search.clear()

    def _halve(self, guilty: _Range) -> bool:
        """Have both halves of a range probed that ends workers; return False for a single pair."""
        rows = self._rows(guilty.start, guilty.stop)
        if len(rows) == 1:
            return False
        middle = rows[len(rows) // 2]
        self._search.append(_Range(middle, guilty.stop, or_next=False))
        self._search.append(_Range(guilty.start, middle, or_next=True))
        return True

    def _search_may_end(self) -> None:
        if not self._search and not self._found:
            self._fruitless += 1

    @property
    def _whole(self) -> tuple[int, int]:
        return self.task[0].start, self.task[0].stop

    def _rows(self, start: int, stop: int) -> list[int]:
        """Return the rows of a range that are still tried."""
        return [row for row in range(start, stop) if row not in self._left_out]
