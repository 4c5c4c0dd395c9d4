"""What is under way on an NDIF server, kept beside the tables.

A job's id is written before its result is waited for, so that whoever comes after a process that died fetches the
result instead of asking for it again. ``status`` reads the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from attrib_batch.errors import OutputError
from attrib_batch.spec import forward_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.spec import MethodSpec
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Chunk

FOLDER = "ndif"


@dataclass(frozen=True)
class RemoteJob:
    """A job that was submitted and is not fetched yet."""

    name: str
    """Its file, relative to the run's directory; the same pairs of the same chunk have the same one."""
    job_id: str
    host: str
    model: str
    methods: tuple[str, ...]
    """By id; it may hold more of them than are still wanted when it is taken up again."""
    n_pairs: int
    submitted_at: float
    """Seconds since the epoch."""
    status: str = "RECEIVED"
    description: str = ""

    def with_status(self, status: str, description: str) -> RemoteJob:
        """Return the job with the status and description that the server sent last."""
        return replace(self, status=status, description=description)

    def describe(self) -> str:
        """Return the job's id, host and status as one line of text."""
        return f"{self.job_id} on {self.host}: {self.status}" + (f" ({self.description})" if self.description else "")


def job_name(chunk: Chunk, method: MethodSpec, pair_ids: Sequence[int]) -> str:
    """Return the file of the request that scores pairs of a chunk by ``method`` and those that share its passes."""
    return f"{FOLDER}/{_task_name(chunk, method)}-{_digest(list(pair_ids))}.json"


def forget_jobs(store: Store, chunk: Chunk, method: MethodSpec) -> None:
    """Remove the file of every job for pairs of a committed chunk, however its pairs were divided into jobs."""
    task = _task_name(chunk, method)
    for file in store.list(FOLDER):
        if file.name.startswith(f"{task}-"):
            store.remove(file.relative)


def _task_name(chunk: Chunk, method: MethodSpec) -> str:
    return _digest([chunk.cell.model, chunk.cell.dataset, chunk.start, chunk.stop, forward_group(method)])


def _digest(data: list[object]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def write_job(store: Store, job: RemoteJob) -> None:
    """Write the file of a job.

    Raises:
        OutputError: the store cannot be written.
    """
    store.write_bytes(job.name, (json.dumps(asdict(job), indent=2) + "\n").encode())


def read_job(store: Store, name: str) -> RemoteJob | None:
    """Return the job of a request; None where none is under way.

    Raises:
        OutputError: its file is there and cannot be read.
    """
    try:
        data = json.loads(store.read_bytes(name))
        return RemoteJob(**{**data, "methods": tuple(data["methods"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{store.path(name)} cannot be read as a job on an NDIF server ({error}); remove it"
        ) from error


def jobs_under_way(store: Store) -> list[RemoteJob]:
    """Return the jobs that were submitted and are not fetched yet, the oldest first."""
    names = [file.relative for file in store.list(FOLDER) if file.name.endswith(".json")]
    found = [job for name in names if (job := read_job(store, name)) is not None]
    return sorted(found, key=lambda job: job.submitted_at)


def format_counts(jobs: Sequence[RemoteJob]) -> str:
    """Count jobs by state in one line, with what the server says of those that wait; empty text without jobs."""
    counts = Counter(job.status for job in jobs)
    waiting = next((job.description for job in jobs if job.status == "QUEUED" and job.description), "")
    states = ", ".join(f"{n} {status}" for status, n in counts.items())
    return f"NDIF jobs: {states}" + (f" ({waiting.rstrip('.')})" if waiting else "") if jobs else ""
