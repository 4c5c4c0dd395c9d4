"""One stage from first to last, for all models at once.

What workers report goes to the scheduler of their model; what the schedulers decide is done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError, RunInterruptedError
from attrib_batch.execution.commit import commit_given_up
from attrib_batch.execution.events import (
    TaskDone,
    TaskFailed,
    TaskUnreadable,
    WorkerFailedToStart,
    WorkerId,
    WorkerLost,
    WorkerPlaced,
    WorkerReady,
)
from attrib_batch.execution.executor import Demand
from attrib_batch.execution.journal import ModelJournal
from attrib_batch.execution.scheduling.deadlines import Deadlines, NoDeadlines
from attrib_batch.execution.scheduling.scheduler import End, Give, GiveUp, Retire, Scheduler, Start
from attrib_batch.execution.workers.session import MAX_SUBMISSIONS
from attrib_batch.observe.log import EventKind, Level
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.storage.objects import PATIENCE_SECONDS, is_object_url
from attrib_batch.storage.remote_jobs import forget_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.execution.accounting import Tally
    from attrib_batch.execution.events import Event
    from attrib_batch.execution.executor import Executor
    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.execution.planning.stages import PlannedStage, StageWork
    from attrib_batch.execution.scheduling.scheduler import Action
    from attrib_batch.observe.log import RunLog
    from attrib_batch.observe.progress import ProgressView
    from attrib_batch.spec import ModelSpec, WorkersSpec

POLL_SECONDS = 0.5
SHORTEST_DEADLINE = 60.0
"""No worker is taken for hung earlier, however fast others were."""
GRACE_SECONDS = 60.0
"""How much longer than its own time a worker is given that notices by itself that it ran out of it."""


@dataclass
class _ModelLoop:
    """The tasks of one model."""

    spec: ModelSpec
    scheduler: Scheduler
    journal: ModelJournal
    weight_bytes: int
    allotted: int | None = None
    """How many workers it is to have; None before the first look."""
    ended: bool = True
    """Whether the tasks of the stage are at their end."""


@dataclass
class EventLoop:
    """Gives the tasks of stages to an executor's workers, which go on from one stage to the next."""

    executor: Executor
    tally: Tally
    progress: ProgressView
    log: RunLog
    weight_bytes: Callable[[ModelSpec], int]
    """What a model's weights take in memory, about."""
    unreadable: list[tuple[Task, str]] = field(default_factory=list)
    """Tasks whose pairs cannot be read, and why."""
    _models: dict[str, _ModelLoop] = field(default_factory=dict, init=False)
    _stage: PlannedStage = field(init=False)
    _last: bool = field(default=True, init=False)

    def run(self, stage: PlannedStage, poll: Callable[[], bool | None], *, last: bool = True) -> None:
        """Do the tasks of a stage.

        Args:
            stage: the stage.
            poll: called between events; it returns whether to finish what is in hand and take nothing new, or None to
                leave everything as it stands.
            last: whether no stage follows, so that a model whose tasks are at their end needs no worker any more.

        Raises:
            RequestError: a model or its workers cannot be had as asked.
            RunInterruptedError: no worker of a model can be kept alive.
        """
        self._stage, self._last = stage, last
        for spec in stage.work.spec.models:
            if tasks := stage.waiting.get(spec.name):
                self._begin(spec, tasks)
        while any(not model.ended for model in self._models.values()):
            stop = poll()
            if stop is None:
                break
            self._turn(stop=stop)
        for model in self._models.values():
            self.unreadable += model.scheduler.unreadable
            model.scheduler.unreadable.clear()
            if model.scheduler.stopped is not None:
                raise RunInterruptedError(model.scheduler.stopped)

    def _begin(self, spec: ModelSpec, tasks: list[Task]) -> None:
        known = self._models.get(spec.name)
        if known is None:
            patience = _store_patience(self._stage.work)
            deadlines = _deadlines(spec.workers, patience) if self.executor.ends_hung_workers else NoDeadlines()
            known = _ModelLoop(
                spec,
                Scheduler((), 0, deadlines, self.executor.depth),
                ModelJournal(self.log, spec.name),
                self.weight_bytes(spec),
            )
            self._models[spec.name] = known
        known.scheduler.add(tasks)
        known.ended = False

    def _turn(self, *, stop: bool) -> None:
        """Do what every model's scheduler decides, and handle the next events."""
        self.executor.check()
        active = [model for model in self._models.values() if not model.ended]
        # Where one model cannot go on, the run ends, and the others finish what they have in hand.
        stop = stop or any(model.scheduler.stopped is not None for model in active)
        for model in active:
            if stop and not model.scheduler.stopping:
                model.journal.write(EventKind.STOP_ASKED, in_hand=model.scheduler.n_in_flight)
                model.scheduler.stop()
        self._allot([model for model in active if not model.scheduler.stopping])
        for model in active:
            self._announce_waiting(model)
            self._apply(model)
        for event in self.executor.wait(POLL_SECONDS):
            self._handle(event)
        for model in active:
            self._apply(model)  # a task may have been given up last
            if model.scheduler.finished:
                self._end(model)
        self.tally.in_hand = self.executor.pairs_in_hand()
        self.progress.update(self.tally.snapshot())

    def _allot(self, models: list[_ModelLoop]) -> None:
        """Set how many workers each model has, as there is room now."""
        if not models:
            return
        demands = [Demand(model.spec, model.scheduler.n_open, model.weight_bytes) for model in models]
        allotted = self.executor.allot(demands)
        for model in models:
            count = allotted[model.spec.name]
            if count == model.allotted:
                continue
            model.scheduler.want(count)
            if model.allotted is None:
                n_chunks = sum(map(len, self._stage.waiting[model.spec.name]))
                self.progress.note(f"{model.spec.name}: workers {count}, chunks {n_chunks:,}")
            else:
                model.journal.write(EventKind.WORKERS_WANTED, count=count)
                self.progress.note(f"{model.spec.name}: workers {count}, as there is room now")
            model.allotted = count
        if len(models) > 1:
            for model in models:
                model.scheduler.retire_idle()

    def _announce_waiting(self, model: _ModelLoop) -> None:
        n_unplaced = model.scheduler.n_unplaced
        if (message := self.executor.waiting(model.spec, n_unplaced)) is not None:
            model.journal.write(EventKind.WORKERS_UNPLACED, Level.WARNING, count=n_unplaced, message=message)
            self.progress.note(f"{model.spec.name}: {message}")

    def _end(self, model: _ModelLoop) -> None:
        """End the stage for a model, and its workers where others may need their room."""
        model.ended = True
        self.tally.model_ended(model.spec.name)
        model.journal.write(EventKind.MODEL_ENDED)
        if self._last or any(not other.ended for other in self._models.values()):
            model.scheduler.retire_idle()
            self._apply(model)
            model.allotted = None

    def _apply(self, model: _ModelLoop) -> None:
        for action in model.scheduler.decide(time.monotonic()):
            if self._do(model, action):
                model.journal.decided(action)

    def _do(self, model: _ModelLoop, action: Action) -> bool:
        """Do what a scheduler decided; return False where it could not be done, which is logged already."""
        match action:
            case Start():
                self.executor.start(WorkerId(model.spec.name, action.worker), model.spec, self._stage.work)
            case Give():
                worker = WorkerId(model.spec.name, action.worker)
                self.executor.give(worker, action.assignment, self._stage.work)
            case End():
                self.progress.note(f"a worker was lost: {action.message}")
                self.executor.end(WorkerId(model.spec.name, action.worker))
            case Retire():
                self.executor.end(WorkerId(model.spec.name, action.worker))
            case GiveUp():
                return self._give_up(model, action)
        return True

    def _handle(self, event: Event) -> None:
        """Pass an event on to the model's scheduler, the tally, the log and the progress view."""
        model, number, now = self._models[event.worker.model], event.worker.number, time.monotonic()
        scheduler = model.scheduler
        model.journal.happened(event)
        match event:
            case WorkerPlaced():
                scheduler.worker_placed(number, now)
            case WorkerReady():
                self.tally.worker_ready(event.worker.model, number, event.report)
                scheduler.worker_ready(number, now)
            case WorkerFailedToStart():
                self.progress.note(f"a worker could not start: {event.message}")
                scheduler.worker_failed_to_start(number, event.message, now)
            case TaskDone():
                self.tally.add(event.worker.model, number, event.report)
                scheduler.done(number, event.report.assignment, now)
            case TaskUnreadable():
                if all(event.message != message for _, message in scheduler.unreadable[-1:]):
                    self.progress.note(event.message)
                scheduler.cannot_read(number, event.assignment, event.message, now)
            case TaskFailed():
                self.progress.note(f"a worker is replaced: {event.message}")
                scheduler.task_failed(number, event.assignment, event.message)
            case WorkerLost():
                self.progress.note(f"a worker was lost: {event.message}")
                scheduler.lost(number, event.message, now)

    def _give_up(self, model: _ModelLoop, given_up: GiveUp) -> bool:
        """Commit all pairs of a task as failures; return False where even their ids cannot be read."""
        work = self._stage.work
        dataset = work.spec.dataset(given_up.task[0].cell.dataset)
        try:
            table = PinnedTable(dataset.path, dataset.limit, work.pins[dataset.id])
            pairs = table.rows(given_up.task[0].start, given_up.task[0].stop)
        except DatasetError as error:
            self.unreadable.append((given_up.task, str(error)))
            model.journal.unreadable(given_up.task, str(error))
            return False
        for chunk in given_up.task:
            commit_given_up(work.store, chunk, pairs, given_up.pairs)
            forget_jobs(work.store, chunk, work.spec.method(chunk.cell.method))
            self.tally.given_up(model.spec.name, chunk.n_pairs)
            self.executor.given_up(model.spec.name, chunk.n_pairs)
        return True


def _store_patience(work: StageWork) -> float:
    """Return how many seconds a worker waits for an object store before it gives up; 0 where the job uses none."""
    urls = [dataset.path for dataset in work.spec.datasets]
    return PATIENCE_SECONDS if work.store.is_remote or any(map(is_object_url, urls)) else 0.0


def _deadlines(workers: WorkersSpec, store_patience: float) -> Deadlines:
    """Return the deadlines of a worker of this kind."""
    longest = workers.timeout_seconds
    if workers.kind == "ndif":
        # How long its requests wait for others' says nothing about the next one; it minds its time itself. It waits so
        # long for a job, and may have to send it more than once.
        patience = (1 + MAX_SUBMISSIONS) * longest + GRACE_SECONDS
        return Deadlines(patience, patience, store_patience)
    # Shards notice by themselves that one of them is stuck.
    own = GRACE_SECONDS + workers.collective_seconds if workers.collective_seconds else 0.0
    return Deadlines(min(longest, max(SHORTEST_DEADLINE, own)), longest, store_patience)
