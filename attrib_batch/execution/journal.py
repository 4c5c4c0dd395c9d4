"""Write decisions and events of an execution as lines of its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.events import (
    TaskDone,
    TaskFailed,
    TaskUnreadable,
    WorkerFailedToStart,
    WorkerLost,
    WorkerPlaced,
    WorkerReady,
)
from attrib_batch.execution.scheduling.scheduler import End, Give, GiveUp, Retire, Start
from attrib_batch.observe.log import EventKind, Level

if TYPE_CHECKING:
    from attrib_batch.execution.events import Event
    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.scheduling.scheduler import Action
    from attrib_batch.observe.log import RunLog


@dataclass(frozen=True)
class ModelJournal:
    """Writes what is decided and what happens for one model as lines of a log."""

    log: RunLog
    model: str

    def write(self, event: EventKind, level: Level = Level.INFO, **fields: Any) -> None:
        """Write one line about the model."""
        self.log.write(event, level, model=self.model, **fields)

    def decided(self, action: Action) -> None:
        """Write what the scheduler decided and was done."""
        match action:
            case Start():
                self.write(EventKind.WORKER_STARTING, worker=action.worker)
            case Give():
                given = EventKind.TASK_GIVEN if action.assignment.probe is None else EventKind.PROBE_GIVEN
                self.write(given, worker=action.worker, **_assignment_fields(action.assignment))
            case End():
                self.write(EventKind.WORKER_ENDED, Level.WARNING, worker=action.worker, message=action.message)
            case GiveUp():
                self.write(
                    EventKind.TASK_GIVEN_UP,
                    Level.WARNING,
                    **_task_fields(action.task),
                    pairs=0,
                    failed=sum(chunk.n_pairs for chunk in action.task),
                    message=action.pairs[-1].message,
                )

            case Retire():
                self.write(EventKind.WORKER_RETIRED, worker=action.worker)

    def happened(self, event: Event) -> None:
        """Write an event of a worker."""
        match event:
            case WorkerPlaced():
                self.write(EventKind.WORKER_PLACED, worker=event.worker.number)
            case WorkerReady():
                self.write(
                    EventKind.WORKER_READY,
                    worker=event.worker.number,
                    seconds=round(event.report.seconds, 3),
                    peak_bytes=event.report.peak_bytes,
                    **event.report.arithmetic,
                )
            case WorkerFailedToStart():
                self.write(
                    EventKind.WORKER_FAILED_TO_START, Level.WARNING, worker=event.worker.number, message=event.message
                )
            case WorkerLost():
                self.write(EventKind.WORKER_LOST, Level.WARNING, worker=event.worker.number, message=event.message)
            case TaskFailed():
                fields = _assignment_fields(event.assignment)
                self.write(
                    EventKind.TASK_FAILED, Level.WARNING, worker=event.worker.number, **fields, message=event.message
                )
            case TaskUnreadable():
                fields = _assignment_fields(event.assignment)
                self.write(
                    EventKind.TASK_UNREADABLE, Level.ERROR, worker=event.worker.number, **fields, message=event.message
                )
            case TaskDone():
                self._done(event)

    def unreadable(self, task: Task, message: str) -> None:
        """Write that not even the driver can read the pairs of a task that is given up."""
        self.write(EventKind.TASK_UNREADABLE, Level.ERROR, **_task_fields(task), message=message)

    def _done(self, event: TaskDone) -> None:
        report = event.report
        fields = {
            "worker": event.worker.number,
            **_assignment_fields(report.assignment),
            "seconds": round(report.seconds, 3),
        }
        if report.assignment.probe is not None:
            self.write(EventKind.PROBE_SURVIVED, **fields)
            return
        self.write(
            EventKind.TASK_COMMITTED,
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
