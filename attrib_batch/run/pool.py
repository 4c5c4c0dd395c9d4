"""The workers of one model: start, replace, and what became of their tasks.

Workers are never restarted by Ray itself; the pool replaces them, with a budget.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import (
    AttribBatchError,
    ModelError,
    OutputError,
    RequestError,
    RunInterruptedError,
)
from attrib_batch.run.gangs import Gang, check_capacity, start_gang
from attrib_batch.workers.ndif import MAX_SUBMISSIONS

if TYPE_CHECKING:
    from attrib_batch.run.plan import Task
    from attrib_batch.spec import Job
    from attrib_batch.store import Store
    from attrib_batch.workers.task import Ready, TaskReport

MAX_FAILED_STARTS = 3
"""Starts that may fail in a row before the run gives up."""
HUNG_GRACE_SECONDS = 60.0
"""How much longer than its time a worker is given to say itself that it ran out of it."""


@dataclass(frozen=True)
class Started:
    """A worker has loaded its model."""

    worker: int
    ready: Ready


@dataclass(frozen=True)
class Done:
    """A worker committed a task."""

    worker: int
    report: TaskReport


@dataclass(frozen=True)
class Lost:
    """A worker died, hung or raised with tasks in hand; it is replaced."""

    worker: int
    message: str


Event = Started | Done | Lost


@dataclass(frozen=True)
class _Call:
    """What a gang was asked; done when every actor has answered."""

    worker: int
    task: Task | None
    """None: to load."""
    references: list[Any]
    waiting: set[Any]


class WorkerPool:
    """The gangs that own one model."""

    def __init__(self, job: Job, model_name: str, store: Store, count: int) -> None:
        """Start ``count`` gangs.

        Raises:
            RequestError: the cluster can never hold them.
        """
        workers = job.model(model_name).workers
        check_capacity(workers, count)
        self._arguments = (job, model_name, store)
        # A session with a server waits so long for a job, and may have to send it more than once.
        waits = 1 + MAX_SUBMISSIONS if workers.kind == "ndif" else 1
        self._hung_after = waits * workers.timeout_seconds + HUNG_GRACE_SECONDS
        self._gangs: dict[int, Gang] = {}
        self._calls: dict[Any, _Call] = {}
        self._sign_of_life: dict[int, float] = {}
        self._next_worker = 0
        self._failed_starts = 0
        for _ in range(count):
            self._start()

    def give(self, worker: int, task: Task) -> None:
        """Give a worker a task."""
        if not any(call.worker == worker for call in self._calls.values()):
            self._sign_of_life[worker] = time.monotonic()
        self._call(worker, task, self._gangs[worker].score(task))

    def wait(self, timeout: float) -> list[Event]:
        """What happened within ``timeout`` seconds; possibly nothing.

        Raises:
            RequestError: a worker could not load its model, for a reason that will not change.
            RunInterruptedError: several workers in a row could not start, or the output cannot be written any more.
        """
        import ray

        finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        # A reference may belong to a worker that an earlier one showed to be lost.
        settled = [self._settle(reference) for reference in finished if reference in self._calls]
        return [event for event in [*settled, *self._hung()] if event is not None]

    def close(self) -> None:
        """End every worker."""
        for gang in self._gangs.values():
            gang.end()
        self._gangs.clear()
        self._calls.clear()

    def _start(self) -> None:
        worker, self._next_worker = self._next_worker, self._next_worker + 1
        self._gangs[worker] = gang = start_gang(*self._arguments)
        self._sign_of_life[worker] = time.monotonic()
        self._call(worker, None, gang.load())

    def _call(self, worker: int, task: Task | None, references: list[Any]) -> None:
        call = _Call(worker, task, references, set(references))
        self._calls.update(dict.fromkeys(references, call))

    def _settle(self, reference: Any) -> Event | None:
        """What the answer of one actor means; nothing while others of its gang are to answer."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(reference)
        try:
            ray.get(reference)
        except RayTaskError as error:
            # The worker's own exception: it is alive, but nothing says in what state.
            cause: BaseException = error.cause
            message = str(cause) if isinstance(cause, AttribBatchError) else f"{type(cause).__name__}: {cause}"
            return self._lost(call, cause, message)
        except RayError as error:
            return self._lost(call, error, f"{type(error).__name__}: {' '.join(str(error).split())}")
        self._sign_of_life[call.worker] = time.monotonic()
        call.waiting.remove(reference)
        if call.waiting:
            return None
        answer = ray.get(call.references[0])
        if call.task is not None:
            return Done(call.worker, answer)
        self._failed_starts = 0
        return Started(call.worker, answer)

    def _hung(self) -> list[Event | None]:
        """Workers that have had something to do for too long."""
        now = time.monotonic()
        busy = {call.worker: call for call in self._calls.values()}
        late = [call for worker, call in busy.items() if now - self._sign_of_life[worker] > self._hung_after]
        message = f"it finished nothing for {self._hung_after:g} s (workers.timeout_seconds)"
        return [self._lost(call, TimeoutError(message), message) for call in late]

    def _lost(self, call: _Call, cause: BaseException, message: str) -> Event | None:
        """End a worker and start another.

        It may still run: an actor that is only out of reach could otherwise finish its task a second time.
        """
        self._gangs.pop(call.worker).end()
        for reference in [reference for reference, other in self._calls.items() if other.worker == call.worker]:
            del self._calls[reference]
        if isinstance(cause, OutputError):
            # Storage that refuses one worker refuses all; trying on would only turn pairs into failures.
            raise RunInterruptedError(message) from cause
        if isinstance(cause, ModelError | RunInterruptedError):
            raise cause
        if call.task is None:
            self._start_failed(cause, message)
            self._start()
            return None
        self._start()
        return Lost(call.worker, message)

    def _start_failed(self, cause: BaseException, message: str) -> None:
        if isinstance(cause, RequestError):
            raise cause
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RunInterruptedError(
                f"{self._failed_starts} workers in a row could not start; the last one said: {message}. "
                "What is committed stays; mend the cause and run the same command again."
            )
