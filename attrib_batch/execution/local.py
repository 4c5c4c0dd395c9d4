"""Workers in this process, without Ray: for notebooks and small jobs.

There is one worker at a time, in a thread, so that the driver can show progress, renew its lease and be interrupted
meanwhile. A worker that hangs cannot be ended, and one that dies takes the process with it.
"""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from attrib_batch.errors import RequestError
from attrib_batch.execution.events import TaskDone, TaskUnreadable, WorkerPlaced, WorkerReady
from attrib_batch.execution.executor import judge
from attrib_batch.ndif.keys import ndif_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from attrib_batch.execution.events import Event, WorkerId
    from attrib_batch.execution.executor import Demand
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.spec import ModelSpec

GRACE_SECONDS = 2.0
JOIN_SECONDS = 60.0
"""How long an executor that is left waits for the micro-batch at work."""


@dataclass
class LastModel:
    """The model that was loaded last, for the next execution on the same run that asks for the same one.

    For no other run: that the weights are still those is checked only where a run is opened again.
    """

    _asked: str = field(default="", init=False)
    _model: LoadedModel | None = field(default=None, init=False)

    def keep(self, spec: ModelSpec, model: LoadedModel) -> None:
        """Keep a model, and no other."""
        self._asked, self._model = _loading(spec), model

    def take(self, spec: ModelSpec) -> LoadedModel | None:
        """Return the model if it is the one that is asked for; then it is kept no longer: the next worker loads it."""
        found = self._model if self._asked == _loading(spec) else None
        self._asked, self._model = "", None
        return found


def _loading(spec: ModelSpec) -> str:
    """Return what decides which model is loaded, and how."""
    return spec.model_dump_json(exclude={"name", "prepend_bos", "batch_tokens", "workers"})


@dataclass
class LocalExecutor:
    """Runs one worker at a time in a thread of this process."""

    given: Mapping[str, LoadedModel] = field(default_factory=dict)
    """Models that are in memory already, by name."""
    last: LastModel | None = field(default=None, init=False)
    """What an earlier execution on the same run left; this one leaves its own."""
    depth: int = field(default=1, init=False)
    ends_hung_workers: bool = field(default=False, init=False)
    grace_seconds: float = field(default=GRACE_SECONDS, init=False)
    workers_here: bool = field(default=True, init=False)
    run_id: str = field(default="", init=False)
    _events: queue.SimpleQueue[Callable[[], Event]] = field(default_factory=queue.SimpleQueue, init=False)
    """Each returns an event, or raises the error that ends the run."""
    _threads: dict[WorkerId, _WorkerThread] = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        """Do nothing: workers run in this process."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker; what it has in hand is left uncommitted."""
        for worker in list(self._threads):
            self.end(worker)

    def check(self) -> None:
        """Do nothing: this process cannot be lost while the driver runs in it."""

    def allot(self, demands: Sequence[Demand]) -> Mapping[str, int]:
        """Give the first model with open tasks the one worker there is.

        Raises:
            RequestError: a model's workers are shards, which are processes of their own.
        """
        for demand in demands:
            if demand.model.workers.kind == "sharded":
                raise RequestError(
                    f"model {demand.model.name!r} is split into shards, which are processes of a Ray cluster: run the "
                    "job with Ray, or use workers of kind replica"
                )
        return {demand.model.name: int(index == 0) for index, demand in enumerate(demands)}

    def waiting(self, model: ModelSpec, n_unplaced: int) -> str | None:
        """Return None: a worker here does not wait for room."""
        del model, n_unplaced
        return None

    def start(self, worker: WorkerId, model: ModelSpec, work: StageWork) -> None:
        """Start a thread that loads the model."""
        from attrib_batch.execution.workers.replica import ReplicaWorker
        from attrib_batch.execution.workers.session import NdifWorker

        owner: NdifWorker | ReplicaWorker
        if model.workers.kind == "ndif":
            owner = NdifWorker(model, work.spec.methods, ndif_key(os.environ))
        else:
            here = self.given.get(model.name) or (self.last.take(model) if self.last else None)
            owner = ReplicaWorker(model, work.spec.methods, given=here, shares_process=True)
        self._threads[worker] = _WorkerThread(worker, owner, self._events)

    def give(self, worker: WorkerId, assignment: Assignment, work: StageWork) -> None:
        """Have the thread score a task."""
        self._threads[worker].give(assignment, work)

    def end(self, worker: WorkerId) -> None:
        """End a thread after the micro-batch at work; its model is kept where the next execution may ask for it."""
        thread = self._threads.pop(worker)
        thread.end()
        if self.last and worker.model not in self.given and (model := thread.idle_model()) is not None:
            self.last.keep(*model)

    def wait(self, seconds: float) -> list[Event]:
        """Return the next event; see `Executor.wait`."""
        try:
            outcome = self._events.get(timeout=seconds)
        except queue.Empty:
            return []
        event = outcome()
        if event.worker not in self._threads:
            return []
        if not isinstance(event, WorkerPlaced | WorkerReady | TaskDone | TaskUnreadable):
            self._threads.pop(event.worker).end()  # the next worker loads the model anew
        return [event]

    def pairs_in_hand(self) -> int:
        """Return how many pairs of the task at work are scored."""
        return sum(thread.n_scored for thread in self._threads.values())

    def given_up(self, model: str, n_pairs: int) -> None:
        """Do nothing: no metrics are exported here."""


def executor_of_run(given: Mapping[str, LoadedModel], last: LastModel) -> LocalExecutor:
    """Return an executor for one execution on a run, which takes and leaves the model that was loaded last."""
    executor = LocalExecutor(given)
    executor.last = last
    return executor


class _Stopped(BaseException):
    """Raised in a worker's thread between two micro-batches, once it is to end."""


class _WorkerThread:
    """A worker, and the thread that does its tasks."""

    def __init__(self, worker: WorkerId, owner: Any, events: queue.SimpleQueue[Callable[[], Event]]) -> None:
        self._worker, self._owner, self._events = worker, owner, events
        self._todo: queue.SimpleQueue[tuple[Assignment, StageWork] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.n_scored = 0
        self._thread = threading.Thread(target=self._work, name=f"worker of {worker.model}", daemon=True)
        self._thread.start()

    def give(self, assignment: Assignment, work: StageWork) -> None:
        self._todo.put((assignment, work))

    def end(self) -> None:
        self._stopped.set()
        self._todo.put(None)
        self._thread.join(JOIN_SECONDS)

    def idle_model(self) -> tuple[ModelSpec, LoadedModel] | None:
        """Return the model that the worker has loaded and computes with no more."""
        from attrib_batch.execution.workers.replica import ReplicaWorker

        if self._thread.is_alive() or not isinstance(self._owner, ReplicaWorker):
            return None
        model = self._owner.loaded()
        return None if model is None else (self._owner.model_spec, model)

    def _work(self) -> None:
        self._report(lambda: WorkerPlaced(self._worker))
        self._do(None, lambda: WorkerReady(self._worker, self._owner.load()))
        while (given := self._todo.get()) is not None:
            self._do(given[0], partial(self._score, *given))

    def _score(self, assignment: Assignment, work: StageWork) -> Event:
        self.n_scored = 0
        try:
            return TaskDone(self._worker, self._owner.score(assignment, work, self._on_batch))
        finally:
            self.n_scored = 0

    def _on_batch(self, n_pairs: int) -> None:
        """Count scored pairs; raise _Stopped if the worker is to end."""
        self.n_scored += n_pairs
        if self._stopped.is_set():
            raise _Stopped

    def _do(self, assignment: Assignment | None, act: Callable[[], Event]) -> None:
        try:
            event = act()
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - what it means is judged where it is heard
            cause = error
            self._report(lambda: judge(cause, self._worker, assignment))
        else:
            self._report(lambda: event)

    def _report(self, outcome: Callable[[], Event]) -> None:
        self._events.put(outcome)
