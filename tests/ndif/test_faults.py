"""Whatever happens between a run and its NDIF server: the same tables, every pair once, and no job sent in vain."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import torch

from attrib_batch.attribution import metrics
from attrib_batch.attribution.metrics import register_metric
from attrib_batch.errors import AttribBatchError, TaskError
from attrib_batch.ndif import retries
from attrib_batch.ndif.errors import JobFailedError
from attrib_batch.pairs.making.writer import write_pairs
from tests.support.demo_pairs import random_pairs
from tests.support.faulty_proxy import BUCKET
from tests.support.forked import ForkedCommand
from tests.support.jobs import (
    TinyJob,
    attrib_batch_here,
    in_words,
    read_scores,
    read_table,
    start,
)
from tests.support.ndif_client import kept_busy
from tests.support.ndif_runs import assert_same, jobs_of, model, proxy_of, served_job
from tests.support.processes import is_gone
from tests.support.same_tables import Tables, assert_same_numbers
from tests.support.worker_here import score_here, worker_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from nnsight.modeling.transformers import TransformersModel
    from torch import Tensor

    from tests.support.ndif_server import NdifServer

# The first run on a machine builds the server's environments.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

N_PAIRS, CHUNK = 24, 8
N_JOBS = N_PAIRS // CHUNK
SLOW = {"id": "atp_ig", "ig_steps": 60}
"""With one pair in a micro-batch, a job of this takes seconds."""


@pytest.fixture(scope="module")
def job(ndif_server: NdifServer, tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return served_job(ndif_server, "llama", tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def replica(job: TinyJob) -> Path:
    out = job.folder / "replica"
    methods = [{"id": "atp"}, SLOW]
    score_here(job.write("replica.yaml", methods=methods, chunk_pairs=CHUNK), out)
    return out


@pytest.fixture(scope="module")
def llama(ndif_server: NdifServer) -> TransformersModel:
    from nnsight.modeling.transformers import TransformersModel

    folder = str(ndif_server.model_folder("llama"))
    return TransformersModel(folder, task="text-generation", dispatch=True, dtype=torch.float32)


@pytest.fixture(scope="module", autouse=True)
def hasty(ndif_server: NdifServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose jobs may take two seconds."""
    folder = tmp_path_factory.mktemp("models") / "hasty"
    shutil.copytree(ndif_server.model_folder("llama"), folder)
    ndif_server.deploy("hasty", folder, execution_timeout_seconds=2)
    return folder


def assert_same_as_replica(out: Path, replica: Path, tmp_path: Path, *, method: str = "atp") -> None:
    """The tables of one method, each pair once."""
    expected = tmp_path / "expected"
    for table in ("scores", "baselines"):
        for part in (replica / table).glob(f"**/method={method}"):
            shutil.copytree(part, expected / part.relative_to(replica))
    assert_same(out, "tiny", expected, "tiny")
    assert read_table(out, "baselines")["pair_id"].to_list() == list(range(N_PAIRS))


def until(happened: Callable[[], bool], process: ForkedCommand | None = None, *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def begin(path: Path, out: Path) -> AbstractContextManager[ForkedCommand]:
    return start("run", path, "--out", out)


def states(out: Path) -> Counter[str]:
    return Counter(job["status"] for job in jobs_of(out))


def test_what_passes_is_waited_for(ndif_server: NdifServer, job: TinyJob, replica: Path, tmp_path: Path) -> None:
    before = ndif_server.jobs_received()
    with proxy_of(ndif_server) as proxy:
        proxy.answer(503, "GET", "/env")
        proxy.answer(429, "POST", "/request", retry_after=3)
        proxy.drop("before", "POST", "/request")
        proxy.drop("before", "GET", "/response")
        proxy.drop("after", "GET", BUCKET)
        path = job.write("faults.yaml", models=[model(job, proxy.url)], chunk_pairs=CHUNK)
        ended = attrib_batch_here("run", path, "--out", tmp_path / "out")
        assert ended.code == 0, ended.said
        assert proxy.faults_left() == 0
        first, second, *_ = proxy.exchanges("POST")
        assert (first.status, second.status) == (429, None)
        assert second.ended_at - first.ended_at >= 3
        assert proxy.requests("POST") == N_JOBS + 2
    assert len(ndif_server.jobs_received()) == len(before) + N_JOBS
    assert_same_as_replica(tmp_path / "out", replica, tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.05)


@pytest.mark.parametrize("path", ["/env", "/status", "/request", "/response", BUCKET])
@pytest.mark.parametrize("fault", [429, 502, 503, 504, "drop"])
@pytest.mark.usefixtures("impatient")
def test_whatever_passes_costs_no_second_job(
    ndif_server: NdifServer, job: TinyJob, tmp_path: Path, path: str, fault: int | str
) -> None:
    before = ndif_server.jobs_received()
    method = "POST" if path == "/request" else "GET"
    with proxy_of(ndif_server) as proxy:
        if isinstance(fault, int):
            proxy.answer(fault, method, path, times=2)
        else:
            proxy.drop("before", method, path, times=2)
        score_here(job.write("passes.yaml", models=[model(job, proxy.url)], chunk_pairs=N_PAIRS), tmp_path / "out")
        assert proxy.faults_left() == 0
    assert len(ndif_server.jobs_received()) == len(before) + 1
    assert read_table(tmp_path / "out", "baselines")["pair_id"].to_list() == list(range(N_PAIRS))


def test_a_job_whose_answer_is_lost_may_be_sent_twice_and_counts_once(
    ndif_server: NdifServer, job: TinyJob, replica: Path, tmp_path: Path
) -> None:
    before = ndif_server.jobs_received()
    with proxy_of(ndif_server) as proxy:
        proxy.drop("after", "POST", "/request")
        path = job.write("twice.yaml", models=[model(job, proxy.url)], chunk_pairs=CHUNK)
        score_here(path, tmp_path / "out")
        assert proxy.faults_left() == 0
    assert len(ndif_server.jobs_received()) == len(before) + N_JOBS + 1
    assert_same_as_replica(tmp_path / "out", replica, tmp_path)


@pytest.mark.parametrize("status", [403, 404])
def test_a_result_that_is_held_no_more_is_computed_again(
    ndif_server: NdifServer, job: TinyJob, replica: Path, tmp_path: Path, status: int
) -> None:
    before = ndif_server.jobs_received()
    with proxy_of(ndif_server) as proxy:
        proxy.answer(status, "GET", BUCKET)
        path = job.write("expired.yaml", models=[model(job, proxy.url)], chunk_pairs=CHUNK)
        score_here(path, tmp_path / "out")
    assert len(ndif_server.jobs_received()) == len(before) + N_JOBS + 1
    assert_same_as_replica(tmp_path / "out", replica, tmp_path)


def test_the_api_dies_with_one_job_running_and_one_waiting(
    ndif_server: NdifServer, job: TinyJob, replica: Path, tmp_path: Path
) -> None:
    before, out = len(ndif_server.jobs_received()), tmp_path / "out"
    entry = model(job, ndif_server.url, count=2, timeout_seconds=20) | {"batch_tokens": 1}
    path = job.write("dies.yaml", models=[entry], methods=[SLOW], chunk_pairs=CHUNK)
    with begin(path, out) as driver:
        until(lambda: states(out) == {"RUNNING": 1, "QUEUED": 1}, driver)
        sent = ndif_server.jobs_received()[before:]
        ndif_server.stop_api()
        try:
            (running,) = (one["job_id"] for one in jobs_of(out) if one["status"] == "RUNNING")
            assert status_in_the_store(ndif_server, running) == "RUNNING"  # the API really died in the middle of it
            # What progress says of it comes every few seconds alone, and may come late.
            shown = attrib_batch_here("status", out).output
            assert re.search(r"QUEUED \((Added to|Moved to position).*Queue", shown), shown
        finally:
            ndif_server.start_api()
        said, _ = driver.communicate(timeout=150)
    assert driver.returncode == 0, said
    assert len(sent) == 2
    received = ndif_server.jobs_received()[before:]
    assert received[:2] == sent
    assert len(received) == N_JOBS + 1  # the one that waited is lost by the server, and no other
    assert "NDIF jobs: " in said
    assert jobs_of(out) == []
    assert_same_as_replica(out, replica, tmp_path, method="atp_ig")


def status_in_the_store(server: NdifServer, job_id: str) -> str:
    """A job's status without the API; the store asks for a signature, and looks at none."""
    signature = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
    answer = httpx.get(f"{server.object_store_url}{BUCKET}/responses/{job_id}.json", headers=signature)
    return str(answer.raise_for_status().json()["status"])


def test_a_driver_that_is_killed_leaves_its_job_to_the_next(
    ndif_server: NdifServer, llama: TransformersModel, job: TinyJob, replica: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    path = job.write("killed.yaml", models=[model(job, ndif_server.url)], chunk_pairs=CHUNK)
    with kept_busy(ndif_server, llama, tmp_path / "gate"):
        before = len(ndif_server.jobs_received())
        with begin(path, out) as driver:
            until(lambda: states(out) == {"QUEUED": 1}, driver)
            actors = [
                process
                for process in psutil.Process(driver.pid).children(recursive=True)
                if "".join(process.cmdline()[:1]).startswith("ray::NdifWorker")
            ]
            os.kill(driver.pid, signal.SIGKILL)
        assert len(actors) == 1
        until(lambda: all(map(is_gone, actors)), seconds=30)
        ((waiting),) = jobs_of(out)
        status = attrib_batch_here("status", out)
        assert status.code == 1
        assert f"{CHUNK} pairs in job {waiting['job_id']} on {ndif_server.url}: QUEUED (Added to Queue" in status.said
        assert ndif_server.jobs_received()[before:] == [waiting["job_id"]]
    ended = attrib_batch_here("run", path, "--out", out)
    assert ended.code == 0, ended.said
    assert len(ndif_server.jobs_received()[before:]) == N_JOBS
    assert jobs_of(out) == []
    assert_same_as_replica(out, replica, tmp_path)


def test_a_job_that_is_too_long_is_divided_and_a_pair_that_is_too_long_is_named(
    ndif_server: NdifServer, hasty: Path, tmp_path: Path
) -> None:
    until(lambda: str(hasty) in httpx.get(f"{ndif_server.url}/status").text)  # what it says may be a minute old
    job = TinyJob(tmp_path, hasty, tmp_path / "pairs.parquet")
    # The last one is patched at a hundred positions, one forward run each.
    long = in_words(random_pairs(1, 110, 3), first_id=6)
    write_pairs(job.pairs, in_words(random_pairs(6, 9, 4)) + long)
    methods = [{"id": "exact", "components": ["z", "q", "k", "v", "mlp_out"]}]
    models = [model(job, ndif_server.url) | {"batch_tokens": 1}]
    before = len(ndif_server.jobs_received())
    ended = attrib_batch_here(
        "run", job.write(models=models, methods=methods, chunk_pairs=7), "--out", tmp_path / "out"
    )
    assert ended.code == 3, ended.said
    failures = read_table(tmp_path / "out", "failures")
    assert failures["pair_id"].to_list() == [6]
    assert failures["error"].to_list() == ["scoring_error"]
    assert "Your job exceeded the execution timeout of 2.0s." in failures["message"][0]
    assert len(ndif_server.jobs_received()) - before >= 5  # 7 pairs, then 3 and 4, then 2 and 2, then 1 and 1
    assert jobs_of(tmp_path / "out") == []
    reference = job.write("reference.yaml", models=[model(job)], methods=methods, chunk_pairs=7)
    score_here(reference, tmp_path / "reference")
    assert_same_numbers(Tables.read(tmp_path / "out"), Tables.read(tmp_path / "reference", without={6}))


def fails_for_some(logits: Tensor, clean_logits: Tensor, answers: Any) -> Tensor:
    found = logits.gather(-1, answers.right)[:, 0]
    return found + torch.where((answers.right == 2).any(-1), torch.nan, 0.0)


def raises_for_some(logits: Tensor, clean_logits: Tensor, answers: Any) -> Tensor:
    if (answers.right == 2).any():
        raise KeyError("missing thing")
    return logits.gather(-1, answers.right)[:, 0]


def raises_for_all(logits: Tensor, clean_logits: Tensor, answers: Any) -> Tensor:
    if answers.right[0, 0] > 1:  # not so when it is tried, on made-up answers from 0 on
        raise KeyError("missing thing")
    return logits.gather(-1, answers.right)[:, 0]


@pytest.fixture
def own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of one's own; other tests do not know them."""
    names: set[str] = set()
    monkeypatch.setattr(metrics, "_loaded", dict(metrics._loaded))
    monkeypatch.setattr(metrics, "registered_names", names)
    monkeypatch.setattr("attrib_batch.spec.registries.metrics.registered_names", names)
    for function in (fails_for_some, raises_for_some, raises_for_all):
        register_metric(function.__name__, function)


def pairs_with_answer_2() -> list[int]:
    pairs = random_pairs(N_PAIRS // 2, 9, 4) + random_pairs(N_PAIRS // 2, 11, 5, seed=1)
    return [index for index, pair in enumerate(pairs) if 2 in pair.answers]


def test_pairs_that_cannot_be_scored_there_are_named_and_the_others_scored(
    ndif_server: NdifServer, job: TinyJob, tmp_path: Path, own_metrics: None
) -> None:
    methods = [{"id": "own", "kind": "atp", "metric": "fails_for_some"}]
    path = job.write("own.yaml", models=[model(job, ndif_server.url)], methods=methods, chunk_pairs=N_PAIRS)
    score_here(path, tmp_path / "out")
    failures = read_table(tmp_path / "out", "failures")
    expected = pairs_with_answer_2()
    assert failures["pair_id"].to_list() == expected
    assert set(failures["error"]) == {"non_finite"}
    scored = set(read_scores(tmp_path / "out")["pair_id"])
    assert scored == set(range(N_PAIRS)) - set(expected)


def test_pairs_that_raise_there_are_failures_and_an_exception_of_all_is_no_pairs_fault(
    ndif_server: NdifServer, job: TinyJob, tmp_path: Path, own_metrics: None
) -> None:
    def write(metric: str) -> Path:
        methods = [{"id": "own", "kind": "atp", "metric": metric}]
        models = [model(job, ndif_server.url)]
        return job.write(f"{metric}.yaml", models=models, methods=methods, chunk_pairs=N_PAIRS)

    some, none = tmp_path / "some", tmp_path / "none"
    before = len(ndif_server.jobs_received())
    score_here(write("raises_for_some"), some)
    assert len(ndif_server.jobs_received()) == before + 2, "a pair that was scored is sent once more"
    assert read_table(some, "failures")["pair_id"].to_list() == pairs_with_answer_2()
    assert jobs_of(some) == []
    with pytest.raises(TaskError, match=f"all {N_PAIRS} pairs of own ended in .*: KeyError: 'missing thing'"):
        score_here(write("raises_for_all"), none)
    assert not list(none.glob("**/*.parquet"))
    assert jobs_of(none) == [], "a fresh worker is not to fetch the same results"


def test_an_error_of_the_request_itself_is_told_and_not_sent_again(
    ndif_server: NdifServer, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attrib_batch.ndif import request as remote

    monkeypatch.setattr(remote, "score_on_server", broken)
    before = ndif_server.jobs_received()
    path = job.write("broken.yaml", models=[model(job, ndif_server.url)], chunk_pairs=N_PAIRS)
    worker, (task,) = worker_here(path, tmp_path / "out")
    worker.load()
    with pytest.raises(JobFailedError, match="sending it again will not mend: KeyError: 'nothing by this name'"):
        worker.score(task)
    assert len(ndif_server.jobs_received()) == len(before) + 1
    assert jobs_of(tmp_path / "out") == []  # otherwise the next attempt would be told the same


def broken(*_: Any, **__: Any) -> None:
    raise KeyError("nothing by this name")


def test_a_request_that_cannot_be_made_is_told(
    ndif_server: NdifServer, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attrib_batch.ndif import request as remote

    def ask(*_: Any, **__: Any) -> None:
        raise TypeError("cannot pickle 'lock' object")

    monkeypatch.setattr(remote, "ask", ask)
    path = job.write("pickle.yaml", models=[model(job, ndif_server.url)], chunk_pairs=N_PAIRS)
    worker, (task,) = worker_here(path, tmp_path / "out")
    worker.load()
    with pytest.raises(AttribBatchError, match=r"cannot be made, .*cannot pickle 'lock' object") as caught:
        worker.score(task)
    assert caught.value.exit_code == 2
