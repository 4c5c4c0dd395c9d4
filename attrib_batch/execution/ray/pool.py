"""The workers of one model, as Ray has them: started, given work and ended as told, and what became of it.

Nothing is decided here. Workers are never restarted by Ray itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import (
    AttribBatchError,
    DatasetError,
    ModelError,
    OutputError,
    RequestError,
    RunInterruptedError,
    TaskError,
)
from attrib_batch.execution.ray.gangs import Gang, start_gang

if TYPE_CHECKING:
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.workers.task import Ready, TaskReport
    from attrib_batch.spec import SweepSpec
    from attrib_batch.storage.store import Store


@dataclass(frozen=True)
class Placed:
    """The processes of a worker run; it loads its model now."""

    worker: int


@dataclass(frozen=True)
class Started:
    """A worker has loaded its model."""

    worker: int
    ready: Ready


@dataclass(frozen=True)
class FailedToStart:
    """A worker died or raised before it was ready, and has been ended."""

    worker: int
    message: str


@dataclass(frozen=True)
class Done:
    """A worker committed a task, or survived a probe."""

    worker: int
    report: TaskReport


@dataclass(frozen=True)
class CannotRead:
    """A worker could not read the pairs it was given; it is well."""

    worker: int
    assignment: Assignment
    message: str


@dataclass(frozen=True)
class TaskFailed:
    """Pairs of a task ended in an exception that is no pair's fault; the worker has been ended."""

    worker: int
    assignment: Assignment
    message: str


@dataclass(frozen=True)
class Lost:
    """A worker died, raised or is out of reach, and has been ended."""

    worker: int
    message: str


Event = Placed | Started | FailedToStart | Done | CannotRead | TaskFailed | Lost


@dataclass(frozen=True)
class _Call:
    """What a gang was asked; done when every actor has answered."""

    worker: int
    assignment: Assignment | None
    """None: to be placed, or to load."""
    references: list[Any]
    waiting: set[Any]
    loads: bool = False
    """Whether it is to load."""


class WorkerPool:
    """The gangs that own one model."""

    def __init__(self, spec: SweepSpec, model_name: str, store: Store, fingerprints: dict[str, str]) -> None:
        """None is started yet."""
        self._arguments = (spec, model_name, store, fingerprints)
        self._gangs: dict[int, Gang] = {}
        self._calls: dict[Any, _Call] = {}

    def start(self, worker: int) -> None:
        """Start a worker; it loads its model as soon as Ray has placed it."""
        self._gangs[worker] = gang = start_gang(*self._arguments)
        self._call(worker, None, gang.placed())

    def give(self, worker: int, assignment: Assignment) -> None:
        """Give a worker something to do."""
        self._call(worker, assignment, self._gangs[worker].score(assignment))

    def end(self, worker: int) -> None:
        """End a worker, whatever it does; nothing more is heard of it."""
        self._gangs.pop(worker).end()
        for reference in [reference for reference, call in self._calls.items() if call.worker == worker]:
            del self._calls[reference]

    def wait(self, timeout: float) -> list[Event]:
        """What happened within ``timeout`` seconds; possibly nothing.

        Raises:
            RequestError: a worker could not load its model, for a reason that will not change.
            RunInterruptedError: the output cannot be written any more, or a server gives no answer.
        """
        import ray

        if not self._calls:
            return []
        finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        # A reference may belong to a worker that an earlier one showed to be lost.
        settled = (self._settle(reference) for reference in finished if reference in self._calls)
        return [event for events in settled for event in events]

    def close(self) -> None:
        """End every worker."""
        for worker in list(self._gangs):
            self.end(worker)

    def _call(self, worker: int, assignment: Assignment | None, references: list[Any], *, loads: bool = False) -> None:
        call = _Call(worker, assignment, references, set(references), loads)
        self._calls.update(dict.fromkeys(references, call))

    def _settle(self, reference: Any) -> list[Event]:
        """What the answer of one actor means; nothing while others of its gang are to answer."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(reference)
        try:
            ray.get(reference)
        except RayTaskError as error:
            # The worker's own exception: it is alive, but nothing says in what state.
            return self._raised(call, error.cause)
        except RayError as error:
            return self._lost(call, f"{type(error).__name__}: {' '.join(str(error).split())}")
        call.waiting.remove(reference)
        if call.waiting:
            return []
        answer = ray.get(call.references[0])
        if call.assignment is not None:
            return [Done(call.worker, answer)]
        if call.loads:
            return [Started(call.worker, answer)]
        self._call(call.worker, None, self._gangs[call.worker].load(), loads=True)
        return [Placed(call.worker)]

    def _raised(self, call: _Call, cause: BaseException) -> list[Event]:
        if isinstance(cause, OutputError):
            # Storage that refuses one worker refuses all; trying on would only turn pairs into failures.
            raise RunInterruptedError(str(cause)) from cause
        if isinstance(cause, ModelError | RunInterruptedError):
            raise cause
        message = str(cause) if isinstance(cause, AttribBatchError) else f"{type(cause).__name__}: {cause}"
        if call.assignment is None:
            if isinstance(cause, RequestError):
                raise cause
            return self._lost(call, message)
        if isinstance(cause, TaskError):
            self.end(call.worker)  # a fresh one may do better
            return [TaskFailed(call.worker, call.assignment, message)]
        if not isinstance(cause, DatasetError):
            return self._lost(call, message)
        unread = CannotRead(call.worker, call.assignment, message)
        if len(call.references) == 1:
            return [unread]
        # The other ranks may have read what this one could not, and wait for it.
        return [unread, *self._lost(call, message)]

    def _lost(self, call: _Call, message: str) -> list[Event]:
        """End a worker: one that is only out of reach could otherwise finish its task a second time."""
        self.end(call.worker)
        if call.assignment is None:
            return [FailedToStart(call.worker, message)]
        return [Lost(call.worker, message)]
