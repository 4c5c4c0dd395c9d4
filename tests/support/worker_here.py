"""A job's worker in the process of the tests, without Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from attrib_batch.execution.planning.prepare import prepare_run
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.replica import ReplicaWorker
from attrib_batch.execution.workers.session import NdifWorker
from attrib_batch.spec import load_spec

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.execution.workers.task import TaskReport


def worker_here(path: Path, out: Path, *, key: str = "") -> tuple[NdifWorker | ReplicaWorker, list[Assignment]]:
    """A worker of the job's only model in this process, not loaded, and what it is to do."""
    prepared = prepare_run(load_spec(path), out)
    prepared.lease.release()  # nobody else is there, and no driver will do it
    ((name, tasks),) = prepared.waiting.items()
    given = (prepared.spec, name, prepared.store, prepared.fingerprints)
    assignments = [Assignment(task) for task in tasks]
    if prepared.spec.model(name).workers.kind == "ndif":
        return NdifWorker(*given, SecretStr(key)), assignments
    return ReplicaWorker(*given), assignments


def score_here(path: Path, out: Path) -> list[TaskReport]:
    """Have every task of a job of one model scored by one worker in this process."""
    worker, assignments = worker_here(path, out)
    worker.load()
    return [worker.score(assignment) for assignment in assignments]
