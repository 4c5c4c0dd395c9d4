"""One model's tasks from first to last: what the workers report goes to the scheduler, what it decides is done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError, RunInterruptedError
from attrib_batch.execution.commit import commit_given_up
from attrib_batch.execution.ray.capacity import (
    ClusterRoom,
    Queue,
    alive_nodes,
    check_capacity,
    cluster_grows,
    free_resources,
    nodes_on_the_way,
)
from attrib_batch.execution.ray.gangs import TASKS_IN_HAND
from attrib_batch.execution.ray.pool import (
    CannotRead,
    Done,
    FailedToStart,
    Lost,
    Placed,
    Started,
    TaskFailed,
    WorkerPool,
)
from attrib_batch.execution.scheduling.deadlines import Deadlines
from attrib_batch.execution.scheduling.scheduler import End, Give, GiveUp, Scheduler, Start
from attrib_batch.execution.workers.session import MAX_SUBMISSIONS
from attrib_batch.observe.log import Level, What
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.storage.objects import PATIENCE_SECONDS, is_object_url
from attrib_batch.tables.remote_jobs import forget_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.execution.planning.prepare import PreparedRun
    from attrib_batch.execution.ray.head import HeadWatch
    from attrib_batch.execution.ray.metrics import RunMetrics
    from attrib_batch.execution.ray.pool import Event
    from attrib_batch.execution.scheduling.scheduler import Action
    from attrib_batch.execution.tally import Tally
    from attrib_batch.observe.log import ModelLog
    from attrib_batch.observe.progress import ProgressView
    from attrib_batch.spec import WorkersSpec

POLL_SECONDS = 0.5
SHORTEST_DEADLINE = 60.0
"""No worker is taken for hung earlier, however fast others were."""
GRACE_SECONDS = 60.0
"""How much longer than its own time a worker is given that notices by itself that it ran out of it."""


@dataclass
class Dispatch:
    """The tasks of one model, and the workers that do them."""

    prepared: PreparedRun
    model_name: str
    tasks: list[Task]
    tally: Tally
    progress: ProgressView
    head: HeadWatch
    log: ModelLog
    metrics: RunMetrics
    unreadable: list[tuple[Task, str]] = field(default_factory=list)
    """Tasks whose pairs cannot be read, and why."""

    def run(self, attend: Callable[[], bool | None]) -> None:
        """Do the tasks.

        Args:
            attend: called between events; it returns whether to finish what is in hand and take nothing new, or None to
                leave everything as it stands.

        Raises:
            RequestError: the model or the workers cannot be had as asked.
            RunInterruptedError: no worker can be kept alive.
        """
        prepared, workers = self.prepared, self.prepared.spec.model(self.model_name).workers
        ask = self.head.ask
        self._room = ClusterRoom(
            workers,
            len(self.tasks),
            nodes=lambda: ask(alive_nodes),
            on_the_way=lambda: ask(nodes_on_the_way),
            grows=lambda: ask(cluster_grows),
        )
        self._queue = Queue(workers, free=lambda: ask(free_resources))
        self._scheduler = Scheduler(
            self.tasks, self._room.wanted, _deadlines(workers, _store_patience(prepared)), TASKS_IN_HAND
        )
        ask(lambda: check_capacity(workers, self._scheduler.n_workers))
        self._pool = WorkerPool(prepared.spec, self.model_name, prepared.store, prepared.fingerprints)
        self.progress.note(
            f"{self.model_name}: workers {self._scheduler.n_workers}, chunks {sum(map(len, self.tasks)):,}"
        )
        try:
            self._feed(attend)
        finally:
            self.tally.model_ended(self.model_name)
            self.log.write(What.MODEL_ENDED)
            if not self.head.lost:  # without it nothing can be ended, and to try may take for ever
                self._pool.close()
        self.unreadable += self._scheduler.unreadable
        if self._scheduler.stopped is not None:
            raise RunInterruptedError(self._scheduler.stopped)

    def _feed(self, attend: Callable[[], bool | None]) -> None:
        scheduler = self._scheduler
        while not scheduler.finished:
            stop = attend()
            if stop is None:
                break
            if stop and not scheduler.stopping:
                self.log.write(What.STOP_ASKED, in_hand=scheduler.n_in_flight)
                scheduler.stop_asked()
            if self._room.changed():
                self.log.write(What.WORKERS_WANTED, count=self._room.wanted)
                self.progress.note(f"{self.model_name}: workers {self._room.wanted}, as the cluster's nodes are now")
                scheduler.want(self._room.wanted)
            if (message := self._queue.told(scheduler.n_unplaced)) is not None:
                self.log.write(What.WORKERS_UNPLACED, Level.WARNING, count=scheduler.n_unplaced, message=message)
                self.progress.note(f"{self.model_name}: {message}")
            self._obey()
            for event in self._pool.wait(POLL_SECONDS):
                self._tell(event)
            self.progress.update(self.tally)
        self._obey()  # a task may have been given up last

    def _obey(self) -> None:
        for action in self._scheduler.decide(time.monotonic()):
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Start():
                self.head.ask(lambda: self._pool.start(action.worker))
            case Give():
                self._pool.give(action.worker, action.assignment)
            case End():
                self.progress.note(f"a worker was lost: {action.message}")
                self._pool.end(action.worker)
            case GiveUp():
                if not self._give_up(action):
                    return
        self.log.decided(action)

    def _tell(self, event: Event) -> None:
        scheduler, now = self._scheduler, time.monotonic()
        self.log.happened(event)
        match event:
            case Placed():
                scheduler.worker_placed(event.worker, now)
            case Started():
                self.tally.worker_ready(self.model_name, event.worker, event.ready)
                scheduler.worker_ready(event.worker, now)
            case FailedToStart():
                self.progress.note(f"a worker could not start: {event.message}")
                scheduler.worker_failed_to_start(event.worker, event.message, now)
            case Done():
                self.tally.add(self.model_name, event.worker, event.report)
                self.metrics.committed(event.worker, event.report)
                scheduler.done(event.worker, event.report.assignment, now)
            case CannotRead():
                if all(event.message != message for _, message in scheduler.unreadable[-1:]):
                    self.progress.note(event.message)
                scheduler.cannot_read(event.worker, event.assignment, event.message, now)
            case TaskFailed():
                self.progress.note(f"a worker is replaced: {event.message}")
                scheduler.task_failed(event.worker, event.assignment, event.message)
            case Lost():
                self.progress.note(f"a worker was lost: {event.message}")
                scheduler.lost(event.worker, event.message, now)

    def _give_up(self, given_up: GiveUp) -> bool:
        """Commit a task untried; False where even the ids of its pairs cannot be read."""
        dataset = self.prepared.spec.dataset(given_up.task[0].cell.dataset)
        try:
            table = PinnedTable(dataset.path, dataset.limit, self.prepared.fingerprints[dataset.id])
            pairs = table.rows(given_up.task[0].start, given_up.task[0].stop)
        except DatasetError as error:
            self.unreadable.append((given_up.task, str(error)))
            self.log.unreadable(given_up.task, str(error))
            return False
        for chunk in given_up.task:
            commit_given_up(self.prepared.store, chunk, pairs, given_up.pairs)
            forget_jobs(self.prepared.store, chunk, self.prepared.spec.method(chunk.cell.method))
            self.tally.given_up(self.model_name, chunk.n_pairs)
            self.metrics.given_up(chunk.n_pairs)
        return True


def _store_patience(prepared: PreparedRun) -> float:
    """How long a worker may wait for an object store, if it has to do with one; then it gives up by itself."""
    urls = [dataset.path for dataset in prepared.spec.datasets]
    return PATIENCE_SECONDS if prepared.store.is_remote or any(map(is_object_url, urls)) else 0.0


def _deadlines(workers: WorkersSpec, store_patience: float) -> Deadlines:
    """How long a worker of this kind may take."""
    longest = workers.timeout_seconds
    if workers.kind == "ndif":
        # How long its requests wait for others' says nothing about the next one; it minds its time itself. It waits so
        # long for a job, and may have to send it more than once.
        patience = (1 + MAX_SUBMISSIONS) * longest + GRACE_SECONDS
        return Deadlines(patience, patience, store_patience)
    # Shards notice by themselves that one of them is stuck.
    own = GRACE_SECONDS + workers.collective_seconds if workers.collective_seconds else 0.0
    return Deadlines(min(longest, max(SHORTEST_DEADLINE, own)), longest, store_patience)
