"""A node that is out of reach for a while, and afterwards goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest

from tests.support.faults import open_gate
from tests.support.faulty_runs import CHUNK, HANGS, N_PAIRS, RAISES, Runs, assert_same_tables, committed, poison
from tests.support.jobs import start
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.slow

START_SECONDS, RESUMED_SECONDS = 120, 60
HUNG_SECONDS = 20
HELD = poison({RAISES: "hold", HANGS: "hold"})
"""Pairs far apart, so that each of two workers meets one and neither can do all of the work before the other comes."""


def named(processes: list[psutil.Process], title: str) -> psutil.Process | None:
    """The process of this title, if there is one."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.name() == title or "".join(process.cmdline()[:1]).startswith(title):
                return process
    return None


@pytest.mark.timeout(600)  # three nodes are started
def test_a_chunk_that_two_workers_commit_is_there_once(runs: Runs, undisturbed: Path, tmp_path: Path) -> None:
    """The node's raylet stays frozen, so that nobody can end the worker that was given up."""
    out = runs.job.folder / "partition"
    path = runs.write("two.yaml", count=2, timeout_seconds=HUNG_SECONDS)
    with RayCluster(tmp_path, variables=runs.shared.variables) as cluster:
        nodes = [cluster.add_node(cpus=1), cluster.add_node(cpus=1)]
        env = runs.environment(poison=HELD) | cluster.joining
        with start("run", path, "--out", out, "--address", cluster.gcs_address, env=env) as driver:
            deadline = time.monotonic() + START_SECONDS
            while not all(named(cluster.processes(node), "ray::ReplicaWorker.score") for node in nodes):
                assert driver.poll() is None, driver.said()
                assert time.monotonic() < deadline, "the workers did not begin"
                time.sleep(0.1)
            there = cluster.processes(nodes[1])
            raylet, worker = named(there, "raylet"), named(there, "ray::ReplicaWorker.score")
            assert raylet is not None
            assert worker is not None
            raylet.suspend()
            worker.suspend()
            at_loss = len(committed(out))
            open_gate(env)
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
