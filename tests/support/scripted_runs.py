"""Runs without a worker: a scripted executor, what a person is shown, what is left in the directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.driver import RunResult, run_stages
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.spec import parse_spec

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.execution.planning.stages import OpenRun
    from attrib_batch.observe.progress import Snapshot
    from tests.support.jobs import TinyJob
    from tests.support.scripted_executor import ScriptedExecutor

N_PAIRS, CHUNK = 12, 4


@dataclass
class View:
    """Keeps what a person is shown."""

    notes: list[str] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    closed: list[Snapshot] = field(default_factory=list)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def close(self, snapshot: Snapshot) -> None:
        self.closed.append(snapshot)


def models(job: TinyJob, *names: str) -> list[dict[str, Any]]:
    return [{"id": str(job.model), "name": name, "prepend_bos": False} for name in names]


def opened(job: TinyJob, out: Path, **changes: Any) -> OpenRun:
    return open_run(parse_spec(job.data(**{"chunk_pairs": CHUNK, **changes}), source="job"), out)


def run(job: TinyJob, out: Path, executor: ScriptedExecutor, view: View | None = None, **changes: Any) -> RunResult:
    return run_stages(opened(job, out, **changes), executor, view or View())


def events_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in out.glob("logs/*.jsonl") for line in path.read_text().splitlines()]


def record_of(out: Path) -> dict[str, Any]:
    [path] = out.glob("executions/*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found
