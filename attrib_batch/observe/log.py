"""The driver's log: one JSON object a line and event, in OUT/logs/<execution>.jsonl.

Every line has ``time``, ``level``, ``event``, ``run`` and ``execution``; what happened to a worker has ``model`` and
``worker``; what happened to a task has its pairs as well: ``dataset``, ``methods``, ``start``, ``stop``. A log that
cannot be written ends no run: the tables are what counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.ray.pool import CannotRead, Done, FailedToStart, Lost, Placed, Started, TaskFailed
from attrib_batch.execution.scheduling.scheduler import End, Give, GiveUp, Start

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.execution.ray.pool import Event
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.scheduling.scheduler import Action
    from attrib_batch.observe.sinks import Sink

LOGS = "logs"
SUFFIX = ".jsonl"


class What(StrEnum):
    """The ``event`` of a line."""

    EXECUTION_STARTED = "execution_started"
    EXECUTION_ENDED = "execution_ended"
    LEASE_TAKEN = "lease_taken"
    LEASE_RELEASED = "lease_released"
    STOP_ASKED = "stop_asked"
    MODEL_ENDED = "model_ended"
    WORKERS_WANTED = "workers_wanted"
    WORKERS_UNPLACED = "workers_unplaced"
    WORKER_STARTING = "worker_starting"
    WORKER_PLACED = "worker_placed"
    WORKER_READY = "worker_ready"
    WORKER_FAILED_TO_START = "worker_failed_to_start"
    WORKER_LOST = "worker_lost"
    WORKER_ENDED = "worker_ended"
    TASK_GIVEN = "task_given"
    TASK_COMMITTED = "task_committed"
    TASK_GIVEN_UP = "task_given_up"
    TASK_FAILED = "task_failed"
    TASK_UNREADABLE = "task_unreadable"
    PROBE_GIVEN = "probe_given"
    PROBE_SURVIVED = "probe_survived"


class Level(StrEnum):
    """How much a line matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def log_name(execution: str) -> str:
    """The log of one execution, relative to the run's directory."""
    return f"{LOGS}/{execution}{SUFFIX}"


@dataclass
class RunLog:
    """The log of one execution."""

    sink: Sink
    run: str
    """The run's id, from its manifest: the same in every execution of it."""
    execution: str
    secrets: Iterable[str] = field(default=(), repr=False)
    """What no line may show, whatever an exception says."""

    def write(self, event: What, level: Level = Level.INFO, **fields: Any) -> None:
        """Write one line; fields that are None are left out."""
        data = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": event,
            "run": self.run,
            "execution": self.execution,
        }
        line = json.dumps(data | {key: value for key, value in fields.items() if value is not None})
        for secret in filter(None, self.secrets):
            line = line.replace(json.dumps(secret)[1:-1], "***")
        self.sink.write(f"{line}\n".encode())

    def close(self) -> None:
        """Write what is left."""
        self.sink.close()


@dataclass(frozen=True)
class ModelLog:
    """What is done for one model, as lines of a log."""

    log: RunLog
    model: str

    def write(self, event: What, level: Level = Level.INFO, **fields: Any) -> None:
        """Write one line about the model."""
        self.log.write(event, level, model=self.model, **fields)

    def decided(self, action: Action) -> None:
        """The scheduler decided something, and it is done."""
        match action:
            case Start():
                self.write(What.WORKER_STARTING, worker=action.worker)
            case Give():
                given = What.TASK_GIVEN if action.assignment.probe is None else What.PROBE_GIVEN
                self.write(given, worker=action.worker, **_assignment_fields(action.assignment))
            case End():
                self.write(What.WORKER_ENDED, Level.WARNING, worker=action.worker, message=action.message)
            case GiveUp():
                self.write(
                    What.TASK_GIVEN_UP,
                    Level.WARNING,
                    **_task_fields(action.task),
                    pairs=0,
                    failed=sum(chunk.n_pairs for chunk in action.task),
                    message=action.pairs[-1].message,
                )

    def happened(self, event: Event) -> None:
        """A worker told something, or nothing any more."""
        match event:
            case Placed():
                self.write(What.WORKER_PLACED, worker=event.worker)
            case Started():
                self.write(
                    What.WORKER_READY,
                    worker=event.worker,
                    seconds=round(event.ready.seconds, 3),
                    peak_bytes=event.ready.peak_bytes,
                )
            case FailedToStart():
                self.write(What.WORKER_FAILED_TO_START, Level.WARNING, worker=event.worker, message=event.message)
            case Lost():
                self.write(What.WORKER_LOST, Level.WARNING, worker=event.worker, message=event.message)
            case TaskFailed():
                fields = _assignment_fields(event.assignment)
                self.write(What.TASK_FAILED, Level.WARNING, worker=event.worker, **fields, message=event.message)
            case CannotRead():
                fields = _assignment_fields(event.assignment)
                self.write(What.TASK_UNREADABLE, Level.ERROR, worker=event.worker, **fields, message=event.message)
            case Done():
                self._done(event)

    def unreadable(self, task: Task, message: str) -> None:
        """Not even the driver can read the pairs of a task that is given up."""
        self.write(What.TASK_UNREADABLE, Level.ERROR, **_task_fields(task), message=message)

    def _done(self, event: Done) -> None:
        report = event.report
        fields = {"worker": event.worker, **_assignment_fields(report.assignment), "seconds": round(report.seconds, 3)}
        if report.assignment.probe is not None:
            self.write(What.PROBE_SURVIVED, **fields)
            return
        self.write(
            What.TASK_COMMITTED,
            **fields,
            model_seconds=round(report.model_seconds, 3),
            pairs=report.n_scored,
            failed=report.n_failed,
            tokens=report.tokens,
            peak_bytes=report.peak_bytes,
        )


def _task_fields(task: Task) -> dict[str, Any]:
    return {
        "dataset": task[0].cell.dataset,
        "methods": [chunk.cell.method for chunk in task],
        "start": task[0].start,
        "stop": task[0].stop,
    }


def _assignment_fields(assignment: Assignment) -> dict[str, Any]:
    return {**_task_fields(assignment.task), "probe": assignment.probe and list(assignment.probe)}
