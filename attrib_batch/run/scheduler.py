"""Which worker does which task next: a state machine without Ray, fed with events by the driver."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.run.plan import Task


@dataclass(frozen=True)
class GiveUp:
    """A task that was tried as often as its budget allows."""

    task: Task
    attempts: int
    message: str


@dataclass
class Scheduler:
    """Hands out tasks in order, retries those whose worker was lost, and gives up after a budget of attempts.

    A worker takes up to ``depth`` tasks at once, so that reading and writing one overlap with computing another. A task
    that was lost once is a suspect: it is retried by a worker with nothing else in hand, so that it can cost no other
    task an attempt again.

    A task is always in exactly one of: waiting, in flight, done, given up.
    """

    tasks: Iterable[Task]
    depth: int = 1
    max_attempts: int = 3
    n_done: int = field(default=0, init=False)
    n_given_up: int = field(default=0, init=False)
    _waiting: deque[Task] = field(init=False)
    _attempts: dict[Task, int] = field(default_factory=dict, init=False)
    _in_hand: dict[int, list[Task]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._waiting = deque(self.tasks)

    @property
    def finished(self) -> bool:
        """Whether no task waits and none is in flight."""
        return not self._waiting and self.n_in_flight == 0

    @property
    def n_in_flight(self) -> int:
        """How many tasks workers have in hand."""
        return sum(map(len, self._in_hand.values()))

    def worker_ready(self, worker: int) -> None:
        """A worker can take tasks."""
        self._in_hand[worker] = []

    def assign(self) -> tuple[int, Task] | None:
        """The next task and the worker that takes it, the least busy one; None while nothing can be given."""
        if not self._waiting or not self._in_hand:
            return None
        worker, in_hand = min(self._in_hand.items(), key=lambda item: len(item[1]))
        task = self._waiting[0]
        alone = self._is_suspect(task) or any(map(self._is_suspect, in_hand))
        if len(in_hand) >= (1 if alone else self.depth):
            return None
        self._waiting.popleft()
        self._attempts[task] = self._attempts.get(task, 0) + 1
        in_hand.append(task)
        return worker, task

    def done(self, worker: int, task: Task) -> None:
        """A worker committed a task."""
        self._in_hand[worker].remove(task)
        del self._attempts[task]
        self.n_done += 1

    def lost(self, worker: int, message: str) -> list[GiveUp]:
        """A worker is gone; its tasks wait again, first in line, or are given up."""
        given_up = []
        for task in reversed(self._in_hand.pop(worker)):
            if self._attempts[task] < self.max_attempts:
                self._waiting.appendleft(task)
            else:
                self.n_given_up += 1
                given_up.append(GiveUp(task, self._attempts.pop(task), message))
        return given_up

    def _is_suspect(self, task: Task) -> bool:
        """Whether a worker was lost with the task in hand before (a task in hand for the first time has 1 attempt)."""
        in_hand_now = any(task in tasks for tasks in self._in_hand.values())
        return self._attempts.get(task, 0) > (1 if in_hand_now else 0)
