"""A plain nnsight client of the NDIF server of the tests: what the package is compared with, and kept waiting by."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.support.faulty_proxy import BUCKET, FaultyProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.modeling.transformers import TransformersModel

    from tests.support.demo_pairs import TokenPair
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


def bytes_of_activations(
    server: NdifServer, model: TransformersModel, pairs: Sequence[TokenPair]
) -> tuple[int, dict[str, Any]]:
    """What comes back, in bytes and as values, where the tutorial's way is taken: z of both runs and its gradients."""
    prompts = [(torch.tensor([pair.corrupted]), torch.tensor([pair.clean])) for pair in pairs]
    token = pairs[0].answers[0]
    with FaultyProxy(server.url, server.object_store_url) as proxy:
        job = backend(server, model, proxy.url)
        with model.session(backend=job):
            kept = []
            for base, other in prompts:
                with model.trace(base):
                    model.model.embed_tokens.output.requires_grad_(True)
                    values = [layer.self_attn.o_proj.input for layer in model.model.layers]
                    gradients = torch.autograd.grad(model.output.logits[0, -1, token], values)
                    kept.append([value.detach().clone() for value in values])
                    kept.append([gradient.clone() for gradient in gradients])
                with model.trace(other):
                    kept.append([layer.self_attn.o_proj.input.detach().clone() for layer in model.model.layers])
            kept.save()
        values = result(job)
        return proxy.response_bytes("GET", BUCKET), values
