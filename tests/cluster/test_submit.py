"""Jobs submitted to a real cluster of two nodes, through the dashboard's job API, with token authentication."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from attrib_batch._version import __version__
from tests.support.faulty_runs import assert_same_tables
from tests.support.forked import ForkedCommand
from tests.support.jobs import ROOT, Ended, TinyJob, attrib_batch, environment, read_table, start, with_forked_workers
from tests.support.ports import LOOPBACK
from tests.support.ray_cluster import RayCluster
from tests.support.worker_here import score_here

pytestmark = pytest.mark.slow

N_PAIRS = 600
SUBMIT_SECONDS = 200


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def undisturbed(job: TinyJob) -> Path:
    """The tables that one worker writes which nothing happens to."""
    out = job.folder / "undisturbed"
    score_here(job.write("undisturbed.yaml", chunk_pairs=100), out)
    assert read_table(out, "baselines")["pair_id"].to_list() == list(range(N_PAIRS))
    return out


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Its drivers and workers are forks that have not imported the package: they find the one that travels."""
    variables = with_forked_workers({}, bare=True)
    with RayCluster(tmp_path_factory.mktemp("cluster"), dashboard=True, variables=variables) as running:
        running.add_node(cpus=2)
        yield running


def with_workers(job: TinyJob, name: str, chunk_pairs: int = 100, **workers: Any) -> Path:
    models = [{"id": str(job.model), "name": "tiny", "prepend_bos": False, "workers": workers}]
    return job.write(name, models=models, chunk_pairs=chunk_pairs)


def start_submit(
    cluster: RayCluster, path: Path, out: Path, *, cwd: Path = ROOT, **variables: str
) -> AbstractContextManager[ForkedCommand]:
    env = environment() | cluster.credentials | variables
    return start("submit", path, "--address", cluster.address, "--out", out, cwd=cwd, env=env)


def submit(cluster: RayCluster, path: Path, out: Path, *, cwd: Path = ROOT, **variables: str) -> Ended:
    with start_submit(cluster, path, out, cwd=cwd, **variables) as process:
        said, _ = process.communicate(timeout=SUBMIT_SECONDS)
    return Ended(process.returncode, said, "")


def committed(out: Path) -> int:
    return len(list(out.glob("scores/**/part-*.parquet")))


def versions_that_ran(out: Path) -> list[str]:
    lines = [json.loads(line) for log in (out / "logs").iterdir() for line in log.read_text().splitlines()]
    return [line["version"] for line in lines if line["event"] == "execution_started"]


def wait_for_chunks(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SUBMIT_SECONDS
    while committed(out) < count:
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline, "no chunk was committed"
        time.sleep(0.01)


def test_a_submitted_job_runs_to_its_end_and_is_resumed(cluster: RayCluster, undisturbed: Path, tmp_path: Path) -> None:
    """From a folder that holds everything, by relative paths: it is the copy that runs."""
    job, out = TinyJob.make(tmp_path / "checkout", n_pairs=N_PAIRS), tmp_path / "out"
    shutil.copytree(ROOT / "attrib_batch", job.folder / "attrib_batch")
    job.write(
        models=[{"id": "model", "name": "tiny", "prepend_bos": False, "workers": {"count": "auto"}}],
        datasets=[{"id": "random", "path": "pairs.parquet"}],
        chunk_pairs=100,
    )
    path, here = Path("job.yaml"), job.folder
    # Ray's client would prefer this address to the one that is given.
    ended = submit(cluster, path, out, cwd=here, RAY_ADDRESS="http://127.0.0.1:1", NDIF_API_KEY="secret-of-mine")
    assert ended.code == 0, ended.said
    assert re.search(r"\d+ files of this folder, \d+\.\d MiB packed", ended.said)
    assert "tiny: workers 2" in ended.said  # both CPUs of the one node that has any
    assert f"{N_PAIRS} of {N_PAIRS} pairs scored" in ended.said
    assert_same_tables(out, undisturbed)

    manifest = json.loads((out / "manifest.json").read_text())
    assert "working_dir_files" in manifest["job"]["datasets"][0]["path"]
    assert manifest["named"] == {"datasets": {"random": "pairs.parquet"}, "models": {"tiny": "model"}}

    # From a folder without the package: the one that is installed here travels, whatever the nodes have.
    (here / "attrib_batch").rename(tmp_path / "attrib_batch")
    (tmp_path / "attrib_batch/_version.py").write_text('__version__ = "0.0.1"\n')
    again = attrib_batch(
        "submit", path, "--address", cluster.address, "--out", out, cwd=here,
        env=environment() | cluster.credentials | {"PYTHONPATH": str(tmp_path)}, seconds=SUBMIT_SECONDS,
        fresh=True,  # a fork has imported the package of this checkout
    )  # fmt: skip
    assert again.code == 0, again.said
    assert "files of this folder and of the installed package" in again.said
    assert f"resuming scoring: {N_PAIRS} of {N_PAIRS} pairs are committed" in again.said
    assert sorted(versions_that_ran(out)) == ["0.0.1", __version__]

    shown = subprocess.run(
        cluster.ray("job", "list", "--address", cluster.address),
        env=environment() | cluster.credentials, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "HF_HUB_OFFLINE" in shown.stdout  # what a job is given can be read
    assert "secret-of-mine" not in shown.stdout
    assert "NDIF_API_KEY" not in shown.stdout


def test_nothing_listens_beyond_loopback(cluster: RayCluster) -> None:
    assert cluster.listening() == {LOOPBACK}


def test_a_bad_request_comes_back_as_one(cluster: RayCluster, job: TinyJob, tmp_path: Path) -> None:
    path = with_workers(job, "impossible.yaml", resources={"ndif_session": 1})
    ended = submit(cluster, path, tmp_path / "out")
    assert ended.code == 2, ended.said
    assert "1 workers ask for 1 ndif_session together, and Ray has 0." in " ".join(ended.said.split())


def test_a_cluster_wants_its_token(cluster: RayCluster, job: TinyJob, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    ended = submit(cluster, job.write(), tmp_path / "out", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert ended.code == 2, ended.said
    assert "wants a token, and this is not it" in ended.said
    assert "Traceback" not in ended.said


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_stop_it(cluster: RayCluster, job: TinyJob, tmp_path: Path) -> None:
    path, out = with_workers(job, "long.yaml", chunk_pairs=1), tmp_path / "out"
    with start_submit(cluster, path, out) as process:
        wait_for_chunks(out, 3, process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "The job goes on." in said
    before = committed(out)
    [stop] = re.findall(r"stop it: ray (job stop .*?);", said.replace("\n", " "))
    subprocess.run(
        cluster.ray(*stop.split()),
        env=environment() | cluster.credentials, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert 0 < before <= committed(out) <= N_PAIRS


def test_a_node_is_lost_and_another_comes(cluster: RayCluster, job: TinyJob, undisturbed: Path, tmp_path: Path) -> None:
    path, out = with_workers(job, "moving.yaml", chunk_pairs=4, count="auto", resources={"mine": 1}), tmp_path / "out"
    first = cluster.add_node(cpus=2, mine=2)
    with start_submit(cluster, path, out) as process:
        wait_for_chunks(out, 5, process)
        cluster.kill_node(first)
        at_loss = committed(out)
        cluster.add_node(cpus=2, mine=1)
        said, _ = process.communicate(timeout=SUBMIT_SECONDS)
    assert process.returncode == 0, said
    assert at_loss < N_PAIRS // 4
    assert "a worker was lost" in said
    # Ray may take longer to see that the first node is gone than the second one takes to come.
    assert re.search(r"tiny: workers [13], as there is room now", said), said
    assert_same_tables(out, undisturbed)
