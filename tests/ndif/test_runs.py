"""Runs on an NDIF server: the same tables as a replica's, few bytes, and a key that stays secret."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
import torch

from attrib_batch.errors import ModelError, RequestError
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.spec import load_spec
from tests.support.demo_pairs import random_pairs
from tests.support.faulty_proxy import BUCKET, Exchange
from tests.support.jobs import Ended, TinyJob, attrib_batch, attrib_batch_here, read_scores
from tests.support.ndif_client import bytes_of_activations
from tests.support.ndif_runs import (
    assert_same,
    execution,
    jobs_of,
    model,
    most_at_once,
    proxy_of,
    served_job,
)
from tests.support.worker_here import score_here, worker_here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nnsight.modeling.transformers import TransformersModel

    from tests.support.ndif_server import NdifServer

# The first run on a machine builds the server's environments.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KEY = "5ec2e75e-0000-4000-8000-c0ffee15c0de"
N_PAIRS, CHUNK, SESSIONS = 24, 8, 2
METHODS = [{"id": "atp", "components": ["z", "q", "k", "mlp_out", "resid_post"]}, {"id": "exact"}]
N_JOBS = len(METHODS) * N_PAIRS // CHUNK


@dataclass(frozen=True)
class Run:
    """A run through the proxy, with a key, and with Ray's own files kept."""

    out: Path
    ray: Path
    ended: Ended
    exchanges: list[Exchange]
    most_at_once: int
    jobs: list[str]
    """Those that the server received meanwhile."""

    @property
    def downloaded(self) -> int:
        """What the proxy sent of results."""
        return sum(exchange.response_bytes for exchange in self.exchanges if exchange.path.startswith(BUCKET))


@pytest.fixture(scope="module")
def job(ndif_server: NdifServer, tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return served_job(ndif_server, "llama", tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def three(ndif_server: NdifServer, job: TinyJob) -> Iterator[Run]:
    """The same model three times in one job: as a replica, in shards, and on the server."""
    out = job.folder / "three"
    before = ndif_server.jobs_received()
    with (
        # Not below pytest's folder: the paths of Ray's sockets have to stay below 108 bytes.
        tempfile.TemporaryDirectory(prefix="ray-") as ray,
        pytest.MonkeyPatch.context() as patch,
        proxy_of(ndif_server) as proxy,
    ):
        patch.setenv("NDIF_API_KEY", KEY)
        patch.setenv("RAY_TMPDIR", ray)
        models = [
            model(job, name="replica"),
            model(job, name="sharded", kind="sharded", shards=2, cpus=0.5),
            model(job, proxy.url, name="ndif", count=SESSIONS),
        ]
        path = job.write("three.yaml", models=models, methods=METHODS, chunk_pairs=CHUNK)
        ended = attrib_batch("run", path, "--out", out)
        jobs = ndif_server.jobs_received()[len(before) :]
        yield Run(out, Path(ray), ended, proxy.exchanges(), most_at_once(proxy), jobs)


@pytest.fixture(scope="module")
def llama(ndif_server: NdifServer) -> TransformersModel:
    from nnsight.modeling.transformers import TransformersModel

    folder = str(ndif_server.model_folder("llama"))
    return TransformersModel(folder, task="text-generation", dispatch=True, dtype=torch.float32)


def test_every_kind_of_worker_writes_the_same_tables(three: Run) -> None:
    assert three.ended.code == 0, three.ended.said
    assert_same(three.out, "ndif", three.out, "replica")
    assert_same(three.out, "sharded", three.out, "replica")


def test_every_chunk_is_one_job_and_sessions_are_bounded(three: Run) -> None:
    assert len(three.jobs) == N_JOBS
    assert three.most_at_once == SESSIONS
    assert jobs_of(three.out) == []


def test_what_comes_back_is_scores_alone(three: Run) -> None:
    counted = execution(three.out)["downloaded_bytes"]
    assert counted == three.downloaded
    rows = read_scores(three.out).filter(pl.col("model") == "ndif").height
    assert rows < counted < 2 * rows * 4  # they come compressed


def test_saving_activations_instead_would_send_far_more(
    ndif_server: NdifServer,
    job: TinyJob,
    llama: TransformersModel,
    tmp_path: Path,
) -> None:
    pairs = random_pairs(N_PAIRS, 11, 5, seed=1)
    theirs, values = bytes_of_activations(ndif_server, llama, pairs)
    assert len(values["kept"]) == 3 * N_PAIRS
    with proxy_of(ndif_server) as proxy:
        path = job.write("bytes.yaml", models=[model(job, proxy.url)], chunk_pairs=N_PAIRS)
        (report,) = score_here(path, tmp_path / "out")
        ours = proxy.response_bytes("GET", BUCKET)
    assert report.downloaded_bytes == ours
    a_pair = f"bytes a pair: {ours / N_PAIRS:.0f} as scores, {theirs / N_PAIRS:.0f} as activations"
    assert theirs > 30 * ours, a_pair


def test_the_key_is_in_no_file_and_no_output(three: Run) -> None:
    assert three.ended.code == 0, three.ended.said
    sent = [exchange for exchange in three.exchanges if exchange.key == KEY]
    assert len(sent) > N_JOBS  # it is used, or nothing is shown by its absence
    logs = list(three.ray.rglob("*.err"))
    assert any(path.name.startswith("worker-") for path in logs)
    files = [path for folder in (three.out, three.ray) for path in folder.rglob("*") if path.is_file()]
    for secret in (KEY, "X-Amz-Signature", "AWSAccessKeyId"):
        assert secret not in three.ended.said
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_result_is_asked_for_without_the_key(three: Run) -> None:
    # Its address carries a right of its own, and may lead to another company's server.
    downloads = [exchange for exchange in three.exchanges if exchange.path.startswith(BUCKET)]
    assert len(downloads) == N_JOBS
    assert {exchange.key for exchange in downloads} == {None}


def test_gpt2_by_every_method(ndif_server: NdifServer, tmp_path: Path) -> None:
    job = served_job(ndif_server, "gpt2", tmp_path, n_pairs=16)
    methods = [
        {"id": "atp", "components": ["z", "q", "mlp_out"]},
        {"id": "noise", "kind": "atp", "direction": "noise", "metric": "prob_diff"},
        {"id": "atp_ig"},
        {"id": "atp_star", "components": ["z", "q", "k"]},
        {"id": "exact"},
    ]
    for name, url in (("ndif", ndif_server.url), ("replica", None)):
        path = job.write(f"{name}.yaml", models=[model(job, url)], methods=methods, chunk_pairs=16)
        score_here(path, tmp_path / name)
    assert_same(tmp_path / "ndif", "tiny", tmp_path / "replica", "tiny")


def test_means_are_taken_there_and_travel_back(ndif_server: NdifServer, job: TinyJob, tmp_path: Path) -> None:
    mean = {"components": ["z", "q"], "reference": "mean"}
    methods = [{"id": kind, "kind": kind, **mean} for kind in ("atp", "atp_star")]
    models = [model(job, name="replica"), model(job, ndif_server.url, name="ndif")]
    before = len(ndif_server.jobs_received())
    path = job.write("means.yaml", models=models, methods=methods, chunk_pairs=N_PAIRS)
    ended = attrib_batch_here("run", path, "--out", tmp_path / "out")
    assert ended.code == 0, ended.said
    # One for the means of both components, which share a pass, and one for each method.
    assert len(ndif_server.jobs_received()) - before == 1 + len(methods)
    assert_same(tmp_path / "out", "ndif", tmp_path / "out", "replica")


def test_a_key_that_is_refused_ends_the_run_and_is_not_shown(
    ndif_server: NdifServer, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    before = ndif_server.jobs_received()
    with proxy_of(ndif_server) as proxy:
        proxy.answer(400, "POST", "/request", echo="ndif-api-key", times=100)
        ended = attrib_batch_here(
            "run", job.write("key.yaml", models=[model(job, proxy.url)]), "--out", tmp_path / "out"
        )
        assert proxy.requests("POST") == 1
    assert ended.code == 2
    assert "refuses the key" in ended.messages
    assert "NDIF_API_KEY" in ended.messages
    assert "'***'" in ended.messages
    assert ended.messages.count("error:") == 1
    assert "Traceback" not in ended.said
    assert KEY not in ended.said
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file() and KEY in path.read_text()] == []
    assert ndif_server.jobs_received() == before


@pytest.mark.parametrize("status", [401, 403])
def test_other_refusals_of_the_key(ndif_server: NdifServer, job: TinyJob, tmp_path: Path, status: int) -> None:
    with proxy_of(ndif_server) as proxy:
        path = job.write(f"{status}.yaml", models=[model(job, proxy.url)])
        worker, tasks = worker_here(path, tmp_path / "out", key=KEY)
        worker.load()
        proxy.answer(status, "POST", "/request", echo="ndif-api-key")
        with pytest.raises(ModelError, match="refuses the key") as caught:
            worker.score(tasks[0])
        assert proxy.requests("POST") == 1
    assert KEY not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_model_that_is_not_deployed_is_named_beside_those_that_are(ndif_server: NdifServer, tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=4, architecture="mistral")
    worker, _ = worker_here(job.write(models=[model(job, ndif_server.url)]), tmp_path / "out")
    with pytest.raises(ModelError, match=f"has not deployed {job.model}") as caught:
        worker.load()
    assert str(ndif_server.model_folder("llama")) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_server_that_is_not_there_ends_the_run_in_time(job: TinyJob, tmp_path: Path) -> None:
    models = [model(job, "http://127.0.0.1:9", timeout_seconds=2)]
    ended = attrib_batch_here("run", job.write("absent.yaml", models=models), "--out", tmp_path / "out")
    assert ended.code == 1
    assert "http://127.0.0.1:9 cannot be used: ConnectError" in ended.said
    assert "for 2 s" in ended.said
    assert "the same command goes on" in ended.said


def test_another_dtype_than_the_servers_is_refused(ndif_server: NdifServer, job: TinyJob, tmp_path: Path) -> None:
    entry = model(job, ndif_server.url) | {"dtype": "bfloat16"}
    worker, tasks = worker_here(job.write("dtype.yaml", models=[entry]), tmp_path / "out")
    worker.load()
    with pytest.raises(RequestError, match="in float32, and the job says bfloat16; set the model's dtype to float32"):
        worker.score(tasks[0])
    assert jobs_of(tmp_path / "out") == []
    assert not list((tmp_path / "out/scores").rglob("*.parquet"))


def test_a_run_may_go_on_with_another_server(ndif_server: NdifServer, job: TinyJob, tmp_path: Path) -> None:
    path = job.write("elsewhere.yaml", models=[{**model(job), "workers": {"kind": "ndif"}}])
    first = open_run(load_spec(path), tmp_path / "out", ndif_host=ndif_server.url)
    first.lease.release()
    assert first.spec.models[0].workers.host == ndif_server.url
    second = open_run(load_spec(path), tmp_path / "out", ndif_host="http://elsewhere")
    second.lease.release()
    assert second.resumed
    assert second.spec.models[0].workers.host == "http://elsewhere"
