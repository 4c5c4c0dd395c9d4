"""An executor without workers: what becomes of every task is what a test says, at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from attrib_batch.execution.commit import commit_chunk
from attrib_batch.execution.events import Event, TaskDone, WorkerFailedToStart, WorkerId, WorkerPlaced, WorkerReady
from attrib_batch.execution.workers.task import LoadReport, TaskReport
from attrib_batch.tables import BASELINES, FAILURES, MOMENTS, PROMPTS, SCORES, STRATA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.execution.executor import Demand
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.spec import ModelSpec

Outcome = Callable[[WorkerId, "Assignment"], Event | None]
"""What becomes of a task; None: it is committed."""


@dataclass
class ScriptedExecutor:
    """Commits empty tables, unless the script says otherwise."""

    workers: Mapping[str, int] = field(default_factory=dict)
    """How many workers each model may have; one where it is not said."""
    outcome: Outcome = lambda _worker, _assignment: None
    fails_to_start: Collection[str] = ()
    """Models whose workers never become ready."""
    total: int = 100
    """How many workers there may be together."""
    warnings: Mapping[str, int] = field(default_factory=dict)
    """What every task that is committed warns of."""
    no_room: str | None = None
    """What is said of workers that wait for room; none of them waits here."""
    depth: int = 1
    ends_hung_workers: bool = True
    grace_seconds: float = 0.0
    run_id: str = ""
    workers_here: bool = True
    started: list[WorkerId] = field(default_factory=list)
    ended: list[WorkerId] = field(default_factory=list)
    given: list[tuple[WorkerId, Assignment]] = field(default_factory=list)
    n_given_up: int = 0
    entered: int = 0
    exited: int = 0
    side_by_side: set[frozenset[str]] = field(default_factory=set)
    """Which models had workers at once."""
    _here: set[WorkerId] = field(default_factory=set)
    _events: deque[Event] = field(default_factory=deque)

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.exited += 1

    def check(self) -> None:
        pass

    def allot(self, demands: Sequence[Demand]) -> Mapping[str, int]:
        left, shares = self.total, {}
        for demand in demands:
            shares[demand.model.name] = min(self.workers.get(demand.model.name, 1), left)
            left -= shares[demand.model.name]
        return shares

    def waiting(self, _model: ModelSpec, _n_unplaced: int) -> str | None:
        said, self.no_room = self.no_room, None
        return said

    def start(self, worker: WorkerId, model: ModelSpec, _work: StageWork) -> None:
        assert worker.model == model.name
        self.started.append(worker)
        self._here.add(worker)
        self.side_by_side.add(frozenset(here.model for here in self._here))
        if model.name in self.fails_to_start:
            self._here.discard(worker)
            self._events += [WorkerPlaced(worker), WorkerFailedToStart(worker, "no memory")]
        else:
            self._events += [WorkerPlaced(worker), WorkerReady(worker, LoadReport(1, 1, 0.0))]

    def give(self, worker: WorkerId, assignment: Assignment, work: StageWork) -> None:
        assert worker in self._here
        self.given.append((worker, assignment))
        event = self.outcome(worker, assignment)
        if event is None:
            event = TaskDone(worker, self._commit(assignment, work))
        elif type(event).__name__ in {"WorkerLost", "TaskFailed"}:
            self._here.discard(worker)
        self._events.append(event)

    def end(self, worker: WorkerId) -> None:
        self._here.discard(worker)
        self.ended.append(worker)
        self._events = deque(event for event in self._events if event.worker != worker)

    def wait(self, _seconds: float) -> list[Event]:
        return [self._events.popleft()] if self._events else []

    def pairs_in_hand(self) -> int:
        return 0

    def given_up(self, _model: str, n_pairs: int) -> None:
        self.n_given_up += n_pairs

    def _commit(self, assignment: Assignment, work: StageWork) -> TaskReport:
        n_pairs = 0
        if assignment.probe is None:
            for chunk in assignment.task:
                commit_chunk(
                    work.store, chunk, scores=SCORES.empty_table(), baselines=BASELINES.empty_table(),
                    failures=FAILURES.empty_table(), moments=MOMENTS.empty_table(), strata=STRATA.empty_table(),
                    prompts=PROMPTS.empty_table(),
                )  # fmt: skip
                n_pairs += chunk.n_pairs
        return TaskReport(assignment, n_pairs, 0, 0, 0, 0, 0.0, 0.0, 1, warnings=dict(self.warnings))
