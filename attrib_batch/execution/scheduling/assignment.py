"""An assignment: a task, the pairs it leaves out, and whether it commits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrib_batch.tables import Chunk


@dataclass(frozen=True)
class LeftOut:
    """A pair that is not tried any more: workers were lost while they had it in hand."""

    row: int
    """Its row in the dataset."""
    attempts: int
    """How many workers were lost with it in hand."""
    message: str
    """How the last one was lost."""


@dataclass(frozen=True)
class Assignment:
    """One thing a worker does.

    A task is committed whole or not at all. To find the pair that ends workers, a part of a task is probed: its pairs
    are scored and nothing is written.
    """

    task: tuple[Chunk, ...]
    """The same pairs for one or several methods."""
    left_out: tuple[LeftOut, ...] = ()
    """Pairs of the task that go into failures untried."""
    probe: tuple[int, int] | None = None
    """The rows [start, stop) to probe; None: the whole task, to be committed."""
    halvings: int = field(default=0, compare=False)
    """How often its micro-batches are halved, which changes no result: the worker before may have run out of memory."""

    @property
    def rows(self) -> tuple[int, int]:
        """The rows [start, stop) that are read."""
        return self.probe or (self.task[0].start, self.task[0].stop)

    @property
    def n_pairs(self) -> int:
        """How many pairs are read, at most."""
        start, stop = self.rows
        return stop - start
