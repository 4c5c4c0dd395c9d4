"""Runs whose dataset and output lie in an object store: the same tables, killed or not, whatever the store answers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from attrib_batch.analysis import scan_baselines, scan_scores
from attrib_batch.spec import Cell
from attrib_batch.storage import conditional, objects
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table
from tests.support.faulty_proxy import FaultyProxy
from tests.support.forked import ForkedCommand
from tests.support.jobs import (
    SCORE_KEYS,
    TinyJob,
    attrib_batch_here,
    environment,
    start,
    with_forked_workers,
)
from tests.support.object_store import SECRET, ObjectStore
from tests.support.same_tables import Tables, assert_same_numbers

N_PAIRS, CHUNK = 160, 8
CELL = Cell("tiny", "random", "atp")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def bucket(object_store_server: ObjectStore, job: TinyJob) -> str:
    object_store_server.make_bucket("runs")
    object_store_server.put("runs/in/pairs.parquet", job.pairs.read_bytes())
    return "runs"


@pytest.fixture(scope="module")
def local(job: TinyJob) -> Path:
    """The same run on a disk."""
    out = job.folder / "local"
    ended = attrib_batch_here("run", job.write("local.yaml", chunk_pairs=CHUNK), "--out", out)
    assert ended.code == 0, ended.said
    return out


@pytest.fixture(scope="module")
def job_file(job: TinyJob, bucket: str) -> Path:
    datasets = [{"id": "random", "path": f"s3://{bucket}/in/pairs.parquet"}]
    return job.write("remote.yaml", datasets=datasets, chunk_pairs=CHUNK)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask fewer times in this process: what lies between is waiting, longer each time."""
    for module in (objects, conditional):
        monkeypatch.setattr(module, "ATTEMPTS", 3)


def download(out: str, folder: Path) -> Path:
    """Everything below ``out``, as files."""
    store = Store.parse(out)
    for file in store.list("", recursive=True):
        path = folder / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read_bytes(file.relative))
    return folder


def wait_for_chunks(store: Store, driver: ForkedCommand) -> None:
    """Wait until some are committed."""
    deadline = time.monotonic() + 120
    while len(store.parts(Table.SCORES, CELL.partition)) < 3:
        assert driver.poll() is None, driver.said()
        assert time.monotonic() < deadline, "no chunk was committed"
        time.sleep(0.02)


def assert_same_tables(out: str, local: Path, folder: Path) -> None:
    assert_same_numbers(Tables.read(download(out, folder)), Tables.read(local))


def test_everything_works_on_urls(
    object_store: ObjectStore, bucket: str, job_file: Path, local: Path, tmp_path: Path
) -> None:
    out = f"s3://{bucket}/whole"
    chunk = Chunk(CELL, 0, CHUNK)
    folder, _, name = chunk.path(Table.SCORES).rpartition("/")
    # What a killed attempt of another program could leave: half a file under a temporary name, and tables whose
    # chunk is not committed.
    object_store.put(f"{bucket}/whole/{folder}/.tmp-0-{name}.partial", b"PAR1 half")
    object_store.put(f"{bucket}/whole/{chunk.path(Table.BASELINES)}", b"PAR1 half")
    object_store.put(f"{bucket}/whole/{chunk.path(Table.FAILURES)}", b"PAR1 half")
    store = Store.parse(out)
    refused = attrib_batch_here("run", job_file, "--out", out)
    assert refused.code == 2, refused.said
    assert "there is no manifest.json" in refused.said
    store.write_bytes("manifest.json", (local / "manifest.json").read_bytes())  # the content is the same, so is the run

    ended = attrib_batch_here("run", job_file, "--out", out)
    assert ended.code == 0, ended.said
    assert f"{N_PAIRS} of {N_PAIRS} pairs scored" in ended.output
    assert ended.output.rstrip().endswith(f"-> {out}")
    store.remove(f"{folder}/.tmp-0-{name}.partial")
    assert_same_tables(out, local, tmp_path / "tables")

    there, here = (attrib_batch_here("status", of) for of in (out, local))
    assert there.code == 0
    assert [line for line in there.output.splitlines() if "speed" not in line] == [
        line for line in here.output.splitlines() if "speed" not in line
    ]
    verified = attrib_batch_here("verify", out, "--pairs", "4")
    assert verified.code == 0, verified.said
    assert f"{out}/verification/agreement.parquet" in verified.output
    assert f"{out}/summary" in attrib_batch_here("summarize", out).output
    report = attrib_batch_here("report", out)
    assert report.output.strip() == f"report: {out}/report.html"
    assert b"Can these scores be trusted?" in store.read_bytes("report.html")

    ours = scan_scores(out, model="tiny").collect().sort(SCORE_KEYS)
    assert_same_numbers(
        Tables(ours, scan_baselines(out).collect().sort("pair_id")),
        Tables(scan_scores(local).collect().sort(SCORE_KEYS), scan_baselines(local).collect().sort("pair_id")),
    )
    few = scan_baselines(out).filter(pair_id=7).select("pair_id", "clean_metric").collect(engine="streaming")
    assert few.height == 1
    assert scan_scores(out).head(5).collect().height == 5

    said = "".join(done.said for done in (ended, verified, report)).encode()
    everything = b"".join(path.read_bytes() for path in download(out, tmp_path / "all").rglob("*") if path.is_file())
    assert SECRET.encode() not in said + everything
    assert object_store.url.encode() not in everything


def test_a_killed_run_is_resumed(
    object_store: ObjectStore, bucket: str, job_file: Path, local: Path, tmp_path: Path
) -> None:
    """Whose workers are in the driver's process: that Ray's go on without it is tested in ``test_resume``."""
    out = f"s3://{bucket}/killed"
    store = Store.parse(out)
    with start("run", job_file, "--out", out, "--local", env=environment()) as driver:
        wait_for_chunks(store, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=90)
    count = len(store.parts(Table.SCORES, CELL.partition))
    assert 0 < count < N_PAIRS // CHUNK
    assert attrib_batch_here("status", out).code == 1
    ended = attrib_batch_here("run", job_file, "--out", out)
    assert ended.code == 0, ended.said
    assert "resuming" in ended.said
    [record] = [json.loads(store.read_bytes(file.relative)) for file in store.list("executions")]
    assert record["pairs_committed_before"] == count * CHUNK
    assert record["pairs_scored"] == N_PAIRS - count * CHUNK
    assert_same_tables(out, local, tmp_path)


def test_a_store_that_fails_now_and_then_changes_nothing(
    object_store: ObjectStore, job_file: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "s3://runs/now-and-then"
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for method in ("GET", "HEAD", "PUT"):
            proxy.answer(500, method, times=2)
        proxy.answer(503, "PUT", "/runs/now-and-then/scores/", times=3)
        proxy.drop("never", "PUT", "/runs/now-and-then/baselines/")
        proxy.drop("after", "PUT", "/runs/now-and-then/scores/")
        ended = attrib_batch_here("run", job_file, "--out", out)
        assert ended.code == 0, ended.said
        assert proxy.faults_left() == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.url)
    assert_same_tables(out, local, tmp_path)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_fails_for_good_ends_the_run_resumably(
    object_store: ObjectStore, job_file: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "s3://runs/for-good"
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.answer(500, "PUT", "/runs/for-good/scores/", times=1000)
        ended = attrib_batch_here("run", job_file, "--out", out)
        assert ended.code == 1, ended.said
        assert f"cannot write {out}/scores/" in ended.said
        assert "the same command goes on" in ended.said
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.url)
    store = Store.parse(out)
    assert store.parts(Table.SCORES, CELL.partition) == set()
    assert store.list(Table.FAILURES, recursive=True) == []  # no pair is to blame
    ended = attrib_batch_here("run", job_file, "--out", out)
    assert ended.code == 0, ended.said
    assert_same_tables(out, local, tmp_path)


def test_a_store_that_hangs_ends_the_run_and_is_blamed_on_no_pair(
    object_store: ObjectStore, job: TinyJob, bucket: str, local: Path, tmp_path: Path
) -> None:
    """Ray's worker has less time for its work than the store may take to be given up."""
    out = f"s3://{bucket}/hangs"
    models = [{"id": str(job.model), "name": "tiny", "prepend_bos": False, "workers": {"timeout_seconds": 30}}]
    path = job.write("hangs.yaml", models=models, chunk_pairs=CHUNK)
    store = Store.parse(out)
    with (
        FaultyProxy(object_store.url) as proxy,
        start(
            "run", path, "--out", out, env=with_forked_workers(environment()) | {"AWS_ENDPOINT_URL": proxy.url}
        ) as driver,
    ):
        wait_for_chunks(store, driver)
        # The first thing that a commit asks there. (A write that is not answered takes twice as long.)
        proxy.drop("never", "HEAD", "/runs/hangs/failures/", times=1000)
        said, _ = driver.communicate(timeout=150)
    assert driver.returncode == 1, said
    assert f"cannot remove {out}/failures/" in said
    assert "the same command goes on from there" in " ".join(said.split())
    assert "a worker was lost" not in said
    assert "Traceback" not in said
    assert 0 < len(store.parts(Table.SCORES, CELL.partition)) < N_PAIRS // CHUNK
    assert store.list(Table.FAILURES, recursive=True) == []
    files = [path for path in download(out, tmp_path / "all").rglob("*") if path.is_file()]
    assert SECRET.encode() not in said.encode() + b"".join(path.read_bytes() for path in files)
    ended = attrib_batch_here("run", path, "--out", out)
    assert ended.code == 0, ended.said
    assert_same_tables(out, local, tmp_path / "tables")


def test_buckets_that_cannot_be_used_are_refused_at_once(
    object_store: ObjectStore, bucket: str, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("status", "summarize", "report"):
        ended = attrib_batch_here(verb, f"s3://{bucket}/empty")
        assert ended.code == 2, ended.said
        assert "manifest.json" in ended.said
    ended = attrib_batch_here("run", job_file, "--out", "s3://no-such-bucket/x")
    assert ended.code == 2, ended.said
    assert "cannot write s3://no-such-bucket/x/lease.json" in ended.messages
    assert ended.messages.count("error:") == 1
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.answer(403, "PUT", times=99)
        ended = attrib_batch_here("run", job_file, "--out", f"s3://{bucket}/denied")
    assert ended.code == 2, ended.said
    assert "lease.json: 403: Forbidden" in ended.messages
    assert "credentials in the environment" in ended.messages
