"""The events that an executor reports of its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.workers.task import LoadReport, TaskReport


@dataclass(frozen=True, order=True)
class WorkerId:
    """A worker of an execution: workers are numbered from 0 for each model."""

    model: str
    number: int


@dataclass(frozen=True)
class WorkerPlaced:
    """The processes of a worker run; it loads its model now."""

    worker: WorkerId


@dataclass(frozen=True)
class WorkerReady:
    """A worker has loaded its model."""

    worker: WorkerId
    report: LoadReport


@dataclass(frozen=True)
class WorkerFailedToStart:
    """A worker died or raised before it was ready, and has been ended."""

    worker: WorkerId
    message: str


@dataclass(frozen=True)
class TaskDone:
    """A worker committed a task, or survived a probe."""

    worker: WorkerId
    report: TaskReport


@dataclass(frozen=True)
class TaskUnreadable:
    """A worker could not read the pairs it was given; the worker itself works on."""

    worker: WorkerId
    assignment: Assignment
    message: str


@dataclass(frozen=True)
class TaskFailed:
    """Pairs of a task ended in an exception that is no pair's fault; the worker has been ended."""

    worker: WorkerId
    assignment: Assignment
    message: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker died, raised or is out of reach, and has been ended."""

    worker: WorkerId
    message: str


Event = WorkerPlaced | WorkerReady | WorkerFailedToStart | TaskDone | TaskUnreadable | TaskFailed | WorkerLost
