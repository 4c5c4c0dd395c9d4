"""Which worker does which task next, and what follows when one is lost: a state machine without Ray or a clock.

The driver tells it what happened and when, and does what it decides. A task is always in exactly one of: waiting, in
hand, committed, given up, unreadable. What goes wrong is put down to a pair (it ends workers), to a worker (it does not
start) or to neither (a task fails as a whole), and only the first costs a pair.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attrib_batch.execution.scheduling.assignment import Assignment, LeftOut
from attrib_batch.execution.scheduling.suspect import Suspect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.execution.scheduling.deadlines import Deadlines

MAX_FAILED_STARTS = 3
"""Starts of one worker, or of those that replace it, that may fail in a row before it is given up."""
MAX_GIVEN_UP_WORKERS = 3
"""Workers that may be given up before any was ever ready.

Some of many workers meet a node that is about to go, and the others start; what keeps this many from starting so often
in a row keeps them all, and the run stops."""
TASK_ATTEMPTS = 2
"""Workers on which a task may fail as a whole, by what is no pair's fault, before the run stops."""
MAX_LOSSES_IN_A_ROW = 40
"""For each worker asked for: losses without a task or probe done in between after which the run stops."""


@dataclass(frozen=True)
class Start:
    """Start a worker of this number."""

    worker: int


@dataclass(frozen=True)
class Give:
    """Give a worker something to do."""

    worker: int
    assignment: Assignment


@dataclass(frozen=True)
class End:
    """End a worker that hangs, whatever it does."""

    worker: int
    message: str


@dataclass(frozen=True)
class GiveUp:
    """Commit a task of which no pair is tried any more."""

    task: Task
    pairs: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Retire:
    """End a worker that has nothing to do, so that others get its room."""

    worker: int


Action = Start | Give | End | GiveUp | Retire


@dataclass
class _Worker:
    """A worker that was started and is not known to be lost."""

    since: float
    """When it was placed, and later when it last began or finished something."""
    failed_starts: int
    """How many before it, that it replaces, failed to start in a row."""
    placed: bool = False
    """Whether its processes run; until then it waits for room, which others may have, and no deadline counts."""
    ready: bool = False
    in_hand: list[Assignment] = field(default_factory=list)


@dataclass
class Scheduler:
    """Hands out tasks in order, retries those whose worker was lost, and finds the pairs that end workers.

    A worker takes up to ``depth`` tasks at once, so that reading and writing one overlap with computing another. A task
    that was in hand when a worker was lost is a suspect: it waits until no other task does, and a worker that takes it
    has nothing else in hand, so that it costs no other task an attempt again.

    A task that fails as a whole, by an exception that is no pair's fault, is no suspect: it is done next, and where it
    fails on a second worker as well, the run stops.
    """

    tasks: Iterable[Task]
    n_workers: int
    deadlines: Deadlines
    depth: int = 1
    stopped: str | None = field(default=None, init=False)
    """Why the run cannot go on; None while it can."""
    stopping: bool = field(default=False, init=False)
    """Whether a stop was asked for: nothing new is given."""
    unreadable: list[tuple[Task, str]] = field(default_factory=list, init=False)
    """Tasks whose pairs cannot be read, and why."""
    _waiting: deque[Task] = field(init=False)
    _suspects: deque[Task] = field(default_factory=deque, init=False)
    """Suspects that wait."""
    _known: dict[Task, Suspect] = field(default_factory=dict, init=False)
    """Every suspect, waiting or in hand."""
    _workers: dict[int, _Worker] = field(default_factory=dict, init=False)
    _decided: list[Action] = field(default_factory=list, init=False)
    _wanted: int = field(init=False)
    """How many workers there are to be: fewer than asked for when some are given up."""
    _started: int = field(default=0, init=False)
    _failed_starts: int = field(default=0, init=False)
    """Starts that failed, of all workers."""
    _failed_workers: int = field(default=0, init=False)
    """Workers of which a start failed; those that replace one count as one with it."""
    _given_up_workers: int = field(default=0, init=False)
    _ever_ready: bool = field(default=False, init=False)
    _failed_tasks: Counter[Task] = field(default_factory=Counter, init=False)
    """On how many workers each task failed as a whole."""
    _losses_in_a_row: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._waiting = deque(self.tasks)
        self._wanted = self.n_workers

    @property
    def n_in_flight(self) -> int:
        """How many tasks workers have in hand."""
        return sum(len(worker.in_hand) for worker in self._workers.values())

    @property
    def n_unplaced(self) -> int:
        """How many workers wait for room."""
        return sum(not worker.placed for worker in self._workers.values())

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be decided: every task has ended, or nothing new is given and none is in hand."""
        if self.stopped is not None:
            return True
        return not self.n_in_flight and (self.stopping or not (self._waiting or self._suspects)) and not self._decided

    @property
    def n_open(self) -> int:
        """How many tasks have not ended; none where nothing new is given."""
        waiting = 0 if self.stopping else len(self._waiting) + len(self._suspects)
        return waiting + self.n_in_flight

    @property
    def n_workers_here(self) -> int:
        """How many workers were started and are not known to be lost."""
        return len(self._workers)

    def add(self, tasks: Iterable[Task]) -> None:
        """Take more tasks, behind those that wait; workers that are ready stay so."""
        self._waiting.extend(tasks)

    def retire_idle(self) -> None:
        """End workers that have nothing in hand when no task waits."""
        if self._waiting or self._suspects:
            return
        for number, worker in list(self._workers.items()):
            if not worker.in_hand:
                del self._workers[number]
                self._decided.append(Retire(number))

    def decide(self, now: float) -> Iterator[Action]:
        """Yield what is to be done now."""
        self._end_hung(now)
        if self.stopped is None and not self.stopping:
            self._start_workers(now)
            self._give(now)
        decided, self._decided = self._decided, []
        yield from decided

    def worker_placed(self, worker: int, now: float) -> None:
        """Record that the processes of a worker run and load its model now."""
        if (known := self._workers.get(worker)) is not None and not known.placed:
            known.placed, known.since = True, now

    def worker_ready(self, worker: int, now: float) -> None:
        """Record that a worker can take tasks."""
        if (known := self._workers.get(worker)) is not None:
            known.placed, known.ready, known.since, known.failed_starts = True, True, now, 0
            self._ever_ready = True

    def worker_failed_to_start(self, worker: int, message: str, now: float) -> None:
        """Record that a worker died or gave up before it was ready."""
        failed = self._workers.pop(worker, None)
        if failed is None:
            return
        self._failed_starts += 1
        self._failed_workers += failed.failed_starts == 0
        if self.stopping or len(self._workers) >= self._wanted:
            return
        in_a_row = failed.failed_starts + 1
        if in_a_row < MAX_FAILED_STARTS:
            self._start(now, failed_starts=in_a_row)
            return
        self._wanted -= 1
        self._given_up_workers += 1
        if not self._wanted or (not self._ever_ready and self._given_up_workers >= MAX_GIVEN_UP_WORKERS):
            starts, workers = f"{self._failed_starts} starts", _count_workers(self._failed_workers)
            outcome = "no worker is left" if self._ever_ready else "none succeeded"
            self._give_up_run(f"{starts} of {workers} failed and {outcome}", message)

    def done(self, worker: int, assignment: Assignment, now: float) -> None:
        """Record that a worker committed a task, or survived a probe."""
        if not self._take_back(worker, assignment, now):
            return
        self._losses_in_a_row = 0
        if assignment.probe is None:
            self._known.pop(assignment.task, None)
            self._failed_tasks.pop(assignment.task, None)
        else:
            self._known[assignment.task].survived()
            self._suspects.append(assignment.task)

    def cannot_read(self, worker: int, assignment: Assignment, message: str, now: float) -> None:
        """Record that the pairs of a task cannot be read: no worker will try them again."""
        if self._take_back(worker, assignment, now, learn=False):
            self._known.pop(assignment.task, None)
            self.unreadable.append((assignment.task, message))

    def task_failed(self, worker: int, assignment: Assignment, message: str) -> None:
        """Record that a task failed as a whole; its worker is ended, and nothing that it had in hand is suspect."""
        gone = self._workers.get(worker)
        if gone is None or assignment not in gone.in_hand:
            return
        del self._workers[worker]
        # The task first: where a fresh worker does not help, no others are begun in vain.
        others = [other for other in gone.in_hand if other != assignment]
        for given in (*reversed(others), assignment):
            (self._suspects if given.task in self._known else self._waiting).appendleft(given.task)
        self._failed_tasks[assignment.task] += 1
        if (attempts := self._failed_tasks[assignment.task]) >= TASK_ATTEMPTS:
            self._give_up_run(
                f"a task failed on {_count_workers(attempts)} for a reason that lies in none of its pairs", message
            )

    def lost(self, worker: int, message: str, now: float, *, hung: bool = False) -> None:
        """Record that a worker died, hung, or is out of reach; its tasks are suspects now, or given up."""
        gone = self._workers.get(worker)
        if gone is None:
            return
        if not gone.ready:
            self.worker_failed_to_start(worker, message, now)
            return
        del self._workers[worker]
        self._losses_in_a_row += 1
        for assignment in gone.in_hand:
            suspect = self._known.setdefault(assignment.task, Suspect(assignment.task))
            suspect.hung += hung
            suspect.lost(message)
            if (reason := suspect.only_together) is not None:
                self._suspects.append(assignment.task)
                self._give_up_run(reason, message)
            elif (pairs := suspect.given_up) is None:
                self._suspects.append(assignment.task)
            else:
                del self._known[assignment.task]
                self._decided.append(GiveUp(assignment.task, pairs))
        if self._losses_in_a_row >= MAX_LOSSES_IN_A_ROW * self.n_workers:
            self._give_up_run(
                f"{self._losses_in_a_row} workers in a row were lost before they finished anything", message
            )

    def want(self, n_workers: int) -> None:
        """Set how many workers there are to be; those that run stay until they are lost."""
        self._wanted = n_workers
        self.n_workers = max(self.n_workers, n_workers)

    def stop(self) -> None:
        """Give out nothing new; tasks in hand may still be finished."""
        self.stopping = True

    def _give_up_run(self, reason: str, message: str) -> None:
        self.stopped = (
            f"{reason}; the last one said: {message}. "
            "What is committed stays; mend the cause and run the same command again."
        )

    def _take_back(self, worker: int, assignment: Assignment, now: float, *, learn: bool = True) -> bool:
        """Take an assignment from a worker; return False if the worker does not have it (any more)."""
        known = self._workers.get(worker)
        if known is None or assignment not in known.in_hand:
            return False
        known.in_hand.remove(assignment)
        if learn:
            self.deadlines.learn(assignment, now - known.since)
        known.since = now
        return True

    def _end_hung(self, now: float) -> None:
        for number, worker in list(self._workers.items()):
            if not worker.placed or (worker.ready and not worker.in_hand):
                continue
            hung = max((self._known[a.task].hung for a in worker.in_hand if a.task in self._known), default=0)
            allowed = self.deadlines.allowance(worker.in_hand, hung=hung) if worker.ready else self.deadlines.longest
            if now - worker.since >= allowed:
                message = f"it finished nothing for {allowed:.0f} s and was taken for hung"
                self._decided.append(End(number, message))
                self.lost(number, message, now, hung=True)

    def _start_workers(self, now: float) -> None:
        while len(self._workers) < min(self._wanted, self.n_open):
            self._start(now)

    def _start(self, now: float, *, failed_starts: int = 0) -> None:
        self._workers[self._started] = _Worker(now, failed_starts)
        self._decided.append(Start(self._started))
        self._started += 1

    def _give(self, now: float) -> None:
        ready = {number: worker for number, worker in self._workers.items() if worker.ready}
        while ready and (self._waiting or self._suspects):
            number, worker = min(ready.items(), key=lambda item: len(item[1].in_hand))
            # A suspect is given only when no other task waits; if one waits again later, it takes another worker.
            alone = not self._waiting or any(held.task in self._known for held in worker.in_hand)
            if len(worker.in_hand) >= (1 if alone else self.depth):
                del ready[number]
                continue
            if not worker.in_hand:
                worker.since = now
            if self._waiting:
                assignment = Assignment(self._waiting.popleft())
            else:
                assignment = self._known[self._suspects.popleft()].next()
            worker.in_hand.append(assignment)
            self._decided.append(Give(number, assignment))


def _count_workers(count: int) -> str:
    """Return a count with its noun, such as ``2 workers``."""
    return f"{count} worker" if count == 1 else f"{count} workers"
