"""A plain nnsight client of the NDIF server of the tests: what the package is compared with, and kept waiting by."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.modeling.transformers import TransformersModel

    from tests.support.ndif_server import NdifServer

TOKENS = torch.tensor([[2, 9, 17, 33, 40]])
JOB_SECONDS = 60


def backend(
    server: NdifServer, model: TransformersModel, url: str, *, name: str = "llama", job_id: str | None = None
) -> RemoteBackend:
    from nnsight.intervention.backends.remote import RemoteBackend

    environment = model._remoteable_get_env()
    return RemoteBackend(server.model_key(name), host=url, env=environment, blocking=False, job_id=job_id)


def submit(server: NdifServer, model: TransformersModel, url: str, *, name: str = "llama") -> RemoteBackend:
    """Submit a job for the logits at the last position."""
    job = backend(server, model, url, name=name)
    with model.session(backend=job):  # noqa: SIM117 - the body of the session is the job
        with model.trace(TOKENS):
            logits = model.output.logits[:, -1].detach().clone().save()  # noqa: F841 - the job returns it by its name
    return job


def result(job: RemoteBackend) -> dict[str, Any]:
    """Wait for what a job returns."""
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        values = job()
        if values is not None:
            return values
        time.sleep(0.05)
    raise AssertionError(f"job {job.job_id} was not done after {JOB_SECONDS} s: {job.status}")


@contextmanager
def kept_busy(server: NdifServer, model: TransformersModel, gate: Path, *, name: str = "llama") -> Iterator[None]:
    """A model that runs nothing else for as long as the context lasts; ``gate`` is a file that does not exist."""
    job = backend(server, model, server.url, name=name)
    with model.session(backend=job):
        for _ in range(1200):
            if Path(gate).exists():
                break
            time.sleep(0.1)
        with model.trace(TOKENS):
            model.output.logits.sum().save()
    try:
        while job() is None and str(job.status.value) != "RUNNING":
            time.sleep(0.05)
        yield
    finally:
        gate.touch()
        result(job)
