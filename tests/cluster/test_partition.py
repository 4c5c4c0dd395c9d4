"""A node that is out of reach for a while, and afterwards goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest

from tests.support.faulty_runs import assert_same_tables, committed
from tests.support.jobs import TinyJob, attrib_batch_here, environment, start
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.slow

N_PAIRS, CHUNK = 600, 4
START_SECONDS, RESUMED_SECONDS = 120, 60
HUNG_SECONDS = 20


def named(processes: list[psutil.Process], title: str) -> psutil.Process | None:
    """The process of this title, if there is one."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.name() == title or "".join(process.cmdline()[:1]).startswith(title):
                return process
    return None


@pytest.mark.timeout(600)  # three nodes are started
def test_a_chunk_that_two_workers_commit_is_there_once(tmp_path: Path) -> None:
    """The node's raylet stays frozen, so that nobody can end the worker that was given up."""
    job, out = TinyJob.make(tmp_path / "job", n_pairs=N_PAIRS), tmp_path / "out"
    undisturbed = tmp_path / "undisturbed"
    ended = attrib_batch_here("run", job.write("undisturbed.yaml", chunk_pairs=100), "--out", undisturbed)
    assert ended.code == 0, ended.said
    workers = {"count": 2, "timeout_seconds": HUNG_SECONDS}
    models = [{"id": str(job.model), "name": "tiny", "prepend_bos": False, "workers": workers}]
    path = job.write("two.yaml", models=models, chunk_pairs=CHUNK)
    with RayCluster(tmp_path) as cluster:
        nodes = [cluster.add_node(cpus=1), cluster.add_node(cpus=1)]
        env = environment() | cluster.joining
        with start("run", path, "--out", out, "--address", cluster.gcs_address, env=env) as driver:
            deadline = time.monotonic() + START_SECONDS
            there: list[psutil.Process] = []
            while len(committed(out)) < 3 or named(there, "ray::ReplicaWorker.score") is None:
                assert driver.poll() is None, driver.said()
                assert time.monotonic() < deadline, "no chunk was committed"
                there = cluster.processes(nodes[1])
            raylet, worker = named(there, "raylet"), named(there, "ray::ReplicaWorker.score")
            assert raylet is not None
            assert worker is not None
            raylet.suspend()
            worker.suspend()
            at_loss = len(committed(out))
            said, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
        assert "a worker was lost" in said
        assert at_loss < N_PAIRS // CHUNK
        assert_same_tables(out, undisturbed)

        before = {file: file.stat().st_mtime_ns for file in committed(out)}
        assert len(before) == N_PAIRS // CHUNK
        worker.resume()
        deadline = time.monotonic() + RESUMED_SECONDS
        while all(file.stat().st_mtime_ns == stamp for file, stamp in before.items()):
            assert time.monotonic() < deadline, "the worker that came back committed nothing"
            time.sleep(0.05)
        assert_same_tables(out, undisturbed)
