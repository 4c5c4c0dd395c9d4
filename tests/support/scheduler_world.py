"""Workers that do what a scheduler decides, without Ray, and what becomes of every row: every one ends once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from attrib_batch.execution.scheduling.assignment import Assignment, LeftOut
from attrib_batch.execution.scheduling.deadlines import Deadlines
from attrib_batch.execution.scheduling.scheduler import End, Give, GiveUp, Scheduler, Start
from attrib_batch.execution.scheduling.suspect import WHOLE_ATTEMPTS
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk

CELL = Cell("model", "dataset", "method")
SHORTEST, LONGEST = 10.0, 1000.0
LEFT_OUT, SCORED, UNREADABLE = "left out", "scored", "unreadable"


def task(start: int, stop: int) -> tuple[Chunk, ...]:
    return (Chunk(CELL, start, stop),)


def tasks_of(n_pairs: int, chunk: int) -> list[tuple[Chunk, ...]]:
    return [task(start, min(start + chunk, n_pairs)) for start in range(0, n_pairs, chunk)]


def touched(assignment: Assignment) -> set[int]:
    """The rows that a worker scores."""
    return set(range(*assignment.rows)) - {pair.row for pair in assignment.left_out}


@dataclass
class World:
    """Workers as the scheduler has them, and what becomes of every row."""

    scheduler: Scheduler
    poison: set[int] = field(default_factory=set)
    """Rows that end any worker that touches them."""
    now: float = 0.0
    loading: list[int] = field(default_factory=list)
    ready: dict[int, list[Assignment]] = field(default_factory=dict)
    gone: list[tuple[int, Assignment]] = field(default_factory=list)
    """What lost workers had in hand."""
    hanging: set[int] = field(default_factory=set)
    ended: dict[int, str] = field(default_factory=dict)
    """What became of each row."""
    lost_alone: dict[int, int] = field(default_factory=dict)
    """Workers lost with one row alone in hand, by row."""
    given_up: set[int] = field(default_factory=set)
    """Rows that were left out as the rest of a hopeless task."""
    suspects: set[tuple[Chunk, ...]] = field(default_factory=set)
    """Tasks with which workers were lost."""
    n_losses: int = 0
    failed_starts: int = 0
    failed_tasks: Counter[tuple[Chunk, ...]] = field(default_factory=Counter)
    """On how many workers each task failed as a whole."""

    @classmethod
    def of(
        cls, n_pairs: int, chunk: int, *, n_workers: int = 1, depth: int = 1, poison: set[int] | None = None
    ) -> World:
        deadlines = Deadlines(SHORTEST, LONGEST)
        scheduler = Scheduler(tasks_of(n_pairs, chunk), n_workers=n_workers, deadlines=deadlines, depth=depth)
        return cls(scheduler, poison or set())

    def obey(self) -> None:
        for action in self.scheduler.decide(self.now):
            match action:
                case Start(worker):
                    assert worker not in self.loading
                    assert worker not in self.ready
                    self.loading.append(worker)
                case Give(worker, assignment):
                    held = self.ready[worker]
                    held.append(assignment)
                    assert len(held) <= self.scheduler.depth
                    assert all(not a.left_out and a.probe is None for a in held) or len(held) == 1
                    assert not any(a.task in self.suspects for a in held) or len(held) == 1
                    assert touched(assignment)
                case End(worker, _):
                    self._drop(worker)
                case GiveUp(given_up, pairs):
                    assert {pair.row for pair in pairs} == set(range(given_up[0].start, given_up[0].stop))
                    self.suspects.discard(given_up)
                    self.given_up |= {pair.row for pair in pairs if pair.message.endswith("together)")}
                    self._end(pairs, LEFT_OUT)

    def start(self, worker: int) -> None:
        self.loading.remove(worker)
        self.ready[worker] = []
        self.scheduler.worker_ready(worker, self.now)

    def fail_to_start(self, worker: int) -> None:
        self.loading.remove(worker)
        self.failed_starts += 1
        self.scheduler.worker_failed_to_start(worker, "no room", self.now)

    def finish(self, worker: int, index: int = 0) -> None:
        """A worker comes to the end of something it has in hand, or to a pair that ends it."""
        assignment = self.ready[worker][index]
        if touched(assignment) & self.poison:
            self.lose(worker)
            return
        self.ready[worker].pop(index)
        self.scheduler.done(worker, assignment, self.now)
        if assignment.probe is None:
            self.suspects.discard(assignment.task)
            self._end(assignment.left_out, LEFT_OUT)
            for row in touched(assignment):
                self._end_row(row, SCORED)

    def fail_task(self, worker: int, index: int = 0) -> None:
        """A task fails as a whole, by what is no pair's fault."""
        assignment = self.ready[worker][index]
        self.hanging.discard(worker)
        self.gone += [(worker, held) for held in self.ready.pop(worker)]
        self.failed_tasks[assignment.task] += 1
        self.scheduler.task_failed(worker, assignment, "KeyError: 'missing thing'")

    def cannot_read(self, worker: int) -> None:
        assignment = self.ready[worker].pop()
        self.suspects.discard(assignment.task)
        self.scheduler.cannot_read(worker, assignment, "damaged", self.now)
        for row in range(assignment.task[0].start, assignment.task[0].stop):
            self._end_row(row, UNREADABLE)

    def lose(self, worker: int) -> None:
        self._drop(worker)
        self.scheduler.lost(worker, "gone", self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def run(self, source: random.Random, *, loss: float = 0.0) -> None:
        """Let things happen at random until the scheduler is done."""
        steps = 0
        self.obey()
        while not self.scheduler.finished:
            steps += 1
            assert steps < 100_000, "it does not end"
            busy = [worker for worker, held in self.ready.items() if held and worker not in self.hanging]
            choice = source.choice([*self.loading, *busy, None])
            if choice is None:
                self.pass_time(LONGEST if not busy and not self.loading else 0.1)
            elif choice in self.loading:
                self.start(choice)
            elif source.random() < loss:
                self.lose(choice)
            else:
                self.finish(choice, source.randrange(len(self.ready[choice])))
            self.obey()

    def _drop(self, worker: int) -> None:
        self.hanging.discard(worker)
        if worker in self.loading:
            self.loading.remove(worker)
            self.failed_starts += 1
            return
        held = self.ready.pop(worker)
        self.n_losses += 1
        for assignment in held:
            self.gone.append((worker, assignment))
            self.suspects.add(assignment.task)
            if assignment.probe is not None and len(rows := touched(assignment)) == 1:
                (row,) = rows
                self.lost_alone[row] = self.lost_alone.get(row, 0) + 1

    def _end(self, pairs: tuple[LeftOut, ...], how: str) -> None:
        for pair in pairs:
            assert pair.attempts >= WHOLE_ATTEMPTS
            assert pair.message
            self._end_row(pair.row, how)

    def _end_row(self, row: int, how: str) -> None:
        assert row not in self.ended, f"row {row} ended twice"
        self.ended[row] = how

    def rows(self, how: str) -> set[int]:
        return {row for row, ended in self.ended.items() if ended == how}
