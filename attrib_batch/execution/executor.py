"""The seam between what is decided and where it is done.

The driver decides which worker does what next and accounts for every pair. An executor gives it workers: in this
process (`local`), or as actors of a Ray cluster (`ray`). It decides nothing, and reports what happened as events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from attrib_batch.errors import (
    AttribBatchError,
    DatasetError,
    ModelError,
    OutputError,
    RequestError,
    RunInterruptedError,
    TaskError,
)
from attrib_batch.execution.events import TaskFailed, TaskUnreadable, WorkerFailedToStart, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.execution.events import Event, WorkerId
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.spec import ModelSpec


@dataclass(frozen=True)
class Demand:
    """The work for which a model needs workers."""

    model: ModelSpec
    open_tasks: int
    """Tasks that are not committed; more workers than these are of no use."""
    weight_bytes: int = 0
    """What its weights take in memory, about; 0 where that is not known."""


class Executor(Protocol):
    """Gives a driver workers. It is entered once for an execution, as a context manager."""

    depth: int
    """Tasks that a worker may have in hand at once."""
    ends_hung_workers: bool
    """Whether a worker that hangs can be ended; otherwise there are no deadlines."""
    grace_seconds: float
    """How long a run that is stopped waits for the tasks in hand."""
    run_id: str
    """The id of the run, which the driver sets; what is counted carries it."""

    @property
    def workers_here(self) -> bool:
        """Whether the workers run on this machine, so that its devices are theirs."""
        ...

    def __enter__(self) -> Self:
        """Prepare to start workers.

        Raises:
            RequestError: the executor cannot be used as asked.
            RunInterruptedError: it cannot be used now.
        """
        ...

    def __exit__(self, *_: object) -> None:
        """End every worker."""
        ...

    def check(self) -> None:
        """Check that workers can still be started.

        Raises:
            RunInterruptedError: what holds the workers is lost.
        """
        ...

    def allot(self, demands: Sequence[Demand]) -> Mapping[str, int]:
        """Return how many workers each model is to have now, by name; called often.

        Raises:
            RequestError: a model can have no worker as asked, now or later.
            RunInterruptedError: the machines that could hold one are gone.
        """
        ...

    def waiting(self, model: ModelSpec, n_unplaced: int) -> str | None:
        """Return a message about ``n_unplaced`` workers that wait for room; None where there is nothing new to say."""
        ...

    def start(self, worker: WorkerId, model: ModelSpec, work: StageWork) -> None:
        """Start a worker, which loads its model once it has room."""
        ...

    def give(self, worker: WorkerId, assignment: Assignment, work: StageWork) -> None:
        """Give a worker something to do."""
        ...

    def end(self, worker: WorkerId) -> None:
        """End a worker, whatever it is doing; no event of it follows."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return the events of the next ``seconds`` seconds; an empty list where there are none.

        Raises:
            RequestError: a worker could not load its model, for a reason that will not change.
            RunInterruptedError: the output cannot be written any more, or a server gives no answer.
        """
        ...

    def pairs_in_hand(self) -> int:
        """Return how many pairs of the tasks in hand are scored already; 0 where that is not known."""
        ...

    def given_up(self, model: str, n_pairs: int) -> None:
        """Count pairs that the driver committed to failures itself."""
        ...


def judge(cause: BaseException, worker: WorkerId, assignment: Assignment | None) -> Event:
    """Return the event that a worker's exception means; the caller ends the worker unless it is `TaskUnreadable`.

    Args:
        cause: what it raised.
        worker: the worker.
        assignment: what it was doing; None where it was loading.

    Raises:
        RequestError: the model or a metric cannot be had as asked.
        RunInterruptedError: the output cannot be written, or a server gives no answer: whoever tries meets the same.
    """
    if isinstance(cause, OutputError):
        # Storage that refuses one worker refuses all; trying on would only turn pairs into failures.
        raise RunInterruptedError(str(cause)) from cause
    if isinstance(cause, ModelError | RunInterruptedError):
        raise cause
    message = str(cause) if isinstance(cause, AttribBatchError) else f"{type(cause).__name__}: {cause}"
    if assignment is None:
        if isinstance(cause, RequestError):
            raise cause
        return WorkerFailedToStart(worker, message)
    if isinstance(cause, TaskError):
        return TaskFailed(worker, assignment, message)
    if isinstance(cause, DatasetError):
        return TaskUnreadable(worker, assignment, message)
    return WorkerLost(worker, message)
