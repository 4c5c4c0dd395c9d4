"""The Ray actors of one model: start, replace, and what became of their tasks.

The only module that talks to Ray. Actors are never restarted by Ray itself (an actor that comes back by itself may run
a task twice); the pool replaces them, with a budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import AttribBatchError, OutputError, RequestError, RunInterruptedError
from attrib_batch.workers.replica import ReplicaWorker, TaskReport

if TYPE_CHECKING:
    from attrib_batch.run.plan import Task
    from attrib_batch.spec import Job
    from attrib_batch.store import Store

TASKS_IN_HAND = 2
"""Tasks a worker holds at once: it reads and writes one while it computes the other."""
MAX_FAILED_STARTS = 3
"""Starts that may fail in a row before the run gives up."""


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its model."""

    worker: int
    peak_bytes: int


@dataclass(frozen=True)
class Done:
    """A worker committed a task."""

    worker: int
    report: TaskReport


@dataclass(frozen=True)
class Lost:
    """A worker died, or raised, with tasks in hand; it is replaced."""

    worker: int
    message: str


Event = Ready | Done | Lost


class WorkerPool:
    """The actors that own one model."""

    def __init__(self, job: Job, model_name: str, store: Store, count: int) -> None:
        """Start ``count`` actors.

        Raises:
            RequestError: the cluster can never hold one of them.
        """
        import ray

        workers = job.model(model_name).workers
        _check_capacity(workers.cpus * count, workers.gpus * count, count, ray.cluster_resources())
        self._arguments = (job, model_name, store)
        self._actor = ray.remote(ReplicaWorker).options(
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=TASKS_IN_HAND,
        )
        self._handles: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, Task | None]] = {}
        self._next_worker = 0
        self._failed_starts = 0
        for _ in range(count):
            self._start()

    def give(self, worker: int, task: Task) -> None:
        """Give a worker a task."""
        self._pending[self._handles[worker].score.remote(task)] = (worker, task)

    def wait(self, timeout: float) -> list[Event]:
        """What happened within ``timeout`` seconds; possibly nothing.

        Raises:
            RequestError: a worker could not load its model, for a reason that will not change.
            RunInterruptedError: several workers in a row could not start, or the output cannot be written any more.
        """
        import ray

        finished, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout)
        # A reference may belong to a worker that an earlier one showed to be lost.
        return [
            event
            for reference in finished
            if reference in self._pending and (event := self._settle(reference)) is not None
        ]

    def close(self) -> None:
        """End every actor."""
        import ray

        for handle in self._handles.values():
            ray.kill(handle, no_restart=True)
        self._handles.clear()
        self._pending.clear()

    def _start(self) -> None:
        worker, self._next_worker = self._next_worker, self._next_worker + 1
        self._handles[worker] = self._actor.remote(*self._arguments)
        self._pending[self._handles[worker].load.remote()] = (worker, None)

    def _settle(self, reference: Any) -> Event | None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        worker, task = self._pending.pop(reference)
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            # The worker's own exception: it is alive, but nothing says in what state.
            cause: BaseException = error.cause
            message = str(cause) if isinstance(cause, AttribBatchError) else f"{type(cause).__name__}: {cause}"
        except RayError as error:
            cause, message = error, f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            self._failed_starts = 0
            return Ready(worker, answer) if task is None else Done(worker, answer)
        self._discard(worker)
        if isinstance(cause, OutputError):
            # Storage that refuses one worker refuses all; trying on would only turn pairs into failures.
            raise RunInterruptedError(message) from cause
        if task is None:
            self._start_failed(cause, message)
            self._start()
            return None
        self._start()
        return Lost(worker, message)

    def _discard(self, worker: int) -> None:
        """End a worker that may still run: an unavailable actor could otherwise finish its task a second time."""
        import ray

        ray.kill(self._handles.pop(worker), no_restart=True)
        for reference in [reference for reference, (owner, _) in self._pending.items() if owner == worker]:
            del self._pending[reference]

    def _start_failed(self, cause: BaseException, message: str) -> None:
        if isinstance(cause, RequestError):
            raise cause
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RunInterruptedError(
                f"{self._failed_starts} workers in a row could not start; the last one said: {message}. "
                "What is committed stays; mend the cause and run the same command again."
            )


def _check_capacity(cpus: float, gpus: float, count: int, available: dict[str, float]) -> None:
    for what, asked, there in (
        ("CPUs", cpus, available.get("CPU", 0)),
        ("GPUs", gpus, available.get("GPU", 0)),
    ):
        if asked > there:
            raise RequestError(
                f"{count} workers ask for {asked:g} {what} together, and Ray has {there:g}. "
                "Lower workers.count or what each one asks for."
            )
