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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.observe.sinks import Sink

LOGS = "logs"
SUFFIX = ".jsonl"


class EventKind(StrEnum):
    """The ``event`` of a line."""

    EXECUTION_STARTED = "execution_started"
    EXECUTION_ENDED = "execution_ended"
    LEASE_TAKEN = "lease_taken"
    LEASE_RELEASED = "lease_released"
    STAGE_STARTED = "stage_started"
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
    WORKER_RETIRED = "worker_retired"
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
    """Return the path of the log of one execution, relative to the run's directory."""
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

    def write(self, event: EventKind, level: Level = Level.INFO, **fields: Any) -> None:
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
