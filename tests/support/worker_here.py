"""A job's worker in the process of the tests, without an executor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from pydantic import SecretStr

from attrib_batch.execution.planning.opening import open_run
from attrib_batch.execution.planning.stages import Scoring, StageWork
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.replica import ReplicaWorker
from attrib_batch.execution.workers.session import NdifWorker
from attrib_batch.spec import load_spec

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.execution.workers.task import TaskReport
    from attrib_batch.spec import SweepSpec
    from attrib_batch.storage.store import Store


@dataclass(frozen=True)
class WorkerHere:
    """A worker, and what all of its tasks have in common."""

    worker: Any
    work: StageWork

    @property
    def store(self) -> Store:
        """Where the tables lie."""
        return self.work.store

    def load(self) -> Any:
        """Load the model; what a process of its own sets in its environment, this one does not keep."""
        with mock.patch.dict(os.environ):
            return self.worker.load()

    def score(self, assignment: Assignment) -> TaskReport:
        """Score a task."""
        report: TaskReport = self.worker.score(assignment, self.work)
        return report


def replica_here(spec: SweepSpec, store: Store, pins: dict[str, str]) -> WorkerHere:
    """Return a worker of a job's only model, not loaded."""
    return WorkerHere(ReplicaWorker(spec.models[0], spec.methods), StageWork(spec, store, pins))


def worker_here(path: Path, out: Path, *, key: str = "") -> tuple[WorkerHere, list[Assignment]]:
    """Return a worker of the job's only model in this process, not loaded, and what it is to do."""
    opened = open_run(load_spec(path), out)
    opened.lease.release()  # nobody else is there, and no driver will do it
    stage = Scoring().plan(opened)
    ((name, tasks),) = stage.waiting.items()
    model, methods = opened.spec.model(name), opened.spec.methods
    on_ndif = model.workers.kind == "ndif"
    worker = NdifWorker(model, methods, SecretStr(key)) if on_ndif else ReplicaWorker(model, methods)
    return WorkerHere(worker, stage.work), [Assignment(task) for task in tasks]


def score_here(path: Path, out: Path) -> list[TaskReport]:
    """Have every task of a job of one model scored by one worker in this process."""
    worker, assignments = worker_here(path, out)
    worker.load()
    return [worker.score(assignment) for assignment in assignments]
