"""The server that the remote tests run against, the proxy in front of it, and what a plain nnsight client gets."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.faulty_proxy import BUCKET, FaultyProxy
from tests.support.ndif_client import TOKENS, backend, result, submit
from tests.support.near import assert_near, estimated_terms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nnsight.modeling.transformers import TransformersModel

    from tests.support.ndif_server import NdifServer

# The first run on a machine builds the server's environments.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def llama(ndif_server: NdifServer) -> TransformersModel:
    """The model that the server has, here."""
    from nnsight.modeling.transformers import TransformersModel

    folder = str(ndif_server.model_folder("llama"))
    return TransformersModel(folder, task="text-generation", dispatch=True, dtype=torch.float32)


@pytest.fixture
def proxy(ndif_server: NdifServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(ndif_server.url, ndif_server.object_store_url) as proxy:
        yield proxy


@pytest.fixture
def local_logits(llama: TransformersModel) -> torch.Tensor:
    with llama.trace(TOKENS):
        logits = llama.output.logits[:, -1].detach().clone().save()
    return logits  # noqa: RET504 - a trace saves what is assigned to a name


def test_a_remote_job_computes_what_the_local_model_does(
    ndif_server: NdifServer, llama: TransformersModel, local_logits: torch.Tensor
) -> None:
    before = ndif_server.jobs_received()
    job = submit(ndif_server, llama, ndif_server.url)
    assert_near(result(job)["logits"], local_logits, estimated_terms(local_logits))
    assert ndif_server.jobs_received() == [*before, job.job_id]


def test_the_proxy_passes_a_job_through_and_counts(
    ndif_server: NdifServer, llama: TransformersModel, local_logits: torch.Tensor, proxy: FaultyProxy
) -> None:
    job = submit(ndif_server, llama, proxy.url)
    assert_near(result(job)["logits"], local_logits, estimated_terms(local_logits))
    assert proxy.requests("POST", "/request") == 1
    assert proxy.requests("GET", f"/response/{job.job_id}") >= 1
    assert proxy.requests("GET", BUCKET) == 1
    assert proxy.response_bytes("GET", BUCKET) >= local_logits.numel() * local_logits.element_size()
    assert proxy.requests() == len(proxy.exchanges()) > proxy.requests("POST")


def test_the_proxy_answers_with_a_status_once(
    ndif_server: NdifServer, llama: TransformersModel, proxy: FaultyProxy
) -> None:
    from nnsight.intervention.backends.remote import RemoteError

    before = ndif_server.jobs_received()
    proxy.answer(503, "POST", "/request")
    with pytest.raises(RemoteError, match="a fault that was asked for"):
        submit(ndif_server, llama, proxy.url)
    assert proxy.faults_left() == 0
    assert ndif_server.jobs_received() == before
    assert "logits" in result(submit(ndif_server, llama, proxy.url))
    assert [exchange.status for exchange in proxy.exchanges("POST")] == [503, 200]


@pytest.mark.parametrize(("when", "received"), [("before", 0), ("after", 1)])
def test_the_proxy_drops_a_connection(
    ndif_server: NdifServer, llama: TransformersModel, proxy: FaultyProxy, when: Any, received: int
) -> None:
    from nnsight.intervention.backends.remote import RemoteError

    before = ndif_server.jobs_received()
    proxy.drop(when, "POST", "/request")
    with pytest.raises(RemoteError, match="disconnected"):
        submit(ndif_server, llama, proxy.url)
    assert len(ndif_server.jobs_received()) == len(before) + received
    assert [exchange.status for exchange in proxy.exchanges()] == [None]


def test_a_result_outlives_the_api(ndif_server: NdifServer, llama: TransformersModel) -> None:
    from nnsight.intervention.backends.remote import RemoteError

    job = submit(ndif_server, llama, ndif_server.url)
    logits = result(job)["logits"]
    received = ndif_server.jobs_received()
    ndif_server.stop_api()
    try:
        # One that reaches the socket just before it is closed is reset.
        with pytest.raises(RemoteError, match=r"refused|reset by peer"):
            submit(ndif_server, llama, ndif_server.url)
    finally:
        ndif_server.start_api()
    assert torch.equal(result(backend(ndif_server, llama, ndif_server.url, job_id=job.job_id))["logits"], logits)
    assert ndif_server.jobs_received() == received
    assert "logits" in result(submit(ndif_server, llama, ndif_server.url))


def test_a_model_deployed_later_has_its_time_limit(
    ndif_server: NdifServer, llama: TransformersModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from nnsight.intervention.backends.remote import RemoteError

    folder = tmp_path_factory.mktemp("models") / "limited"
    shutil.copytree(ndif_server.model_folder("llama"), folder)
    ndif_server.deploy("limited", folder, execution_timeout_seconds=1)
    job = backend(ndif_server, llama, ndif_server.url, name="limited")
    with llama.session(backend=job):
        for _ in range(10_000):
            with llama.trace(TOKENS):
                llama.output.logits.sum().save()
    with pytest.raises(RemoteError, match=r"exceeded the execution timeout of 1\.0s"):
        result(job)
    assert "logits" in result(submit(ndif_server, llama, ndif_server.url, name="limited"))
