"""A driver that has joined a cluster and loses its head: it says so in time, and another cluster goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from attrib_batch.execution.ray.head import RAY_PATIENCE
from tests.support.faulty_runs import CHUNK, N_PAIRS, Runs, assert_same_tables, committed
from tests.support.jobs import TinyJob, attrib_batch, start
from tests.support.ports import LOOPBACK, free_ports
from tests.support.ray_cluster import RayCluster

pytestmark = pytest.mark.slow

START_SECONDS = 120
SLOW = 2.5
"""Seconds that a chunk takes: the run is not over before the head is given up."""
PATIENCE = 20
"""Seconds that Ray waits for a head that is gone; its own minute is only longer to wait for."""


@pytest.mark.timeout(600)  # two clusters are started
def test_a_run_that_loses_the_head_says_so_and_is_resumed_on_another_cluster(
    runs: Runs, undisturbed: Path, tmp_path: Path
) -> None:
    path, out = runs.write(), runs.job.folder / "head-lost"
    with RayCluster(tmp_path, variables=runs.shared.variables) as cluster:
        cluster.add_node()
        env = runs.environment(slow=SLOW) | cluster.joining | {RAY_PATIENCE: str(PATIENCE)}
        with start("run", path, "--out", out, "--address", cluster.gcs_address, env=env) as driver:
            deadline = time.monotonic() + START_SECONDS
            while not committed(out):
                assert driver.poll() is None, driver.said()
                assert time.monotonic() < deadline, "no chunk was committed"
                time.sleep(0.01)
            cluster.kill_node("head")
            said, _ = driver.communicate(timeout=60)
        assert driver.returncode == 1, said
        assert f"the head of the Ray cluster at {cluster.gcs_address} is gone" in said
        assert "the same command goes on from there" in said
        assert "The program will terminate" not in said  # as Ray ends it
        assert "Traceback" not in said
        assert not (out / "lease.json").exists()
        assert 0 < len(committed(out)) < N_PAIRS // CHUNK

        assert runs.shared.cluster.gcs_address != cluster.gcs_address
        ended = runs.run(out)
    assert ended.code == 0, ended.said
    assert "resuming" in ended.said
    assert_same_tables(out, undisturbed)


def test_an_address_at_which_no_cluster_answers_is_named(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path / "job", n_pairs=2)
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    ended = attrib_batch("run", job.write(), "--out", tmp_path / "out", "--address", address, seconds=60)
    assert ended.code == 1, ended.said
    assert f"no Ray cluster answers at {address}" in ended.said
    assert "Traceback" not in ended.said
    assert not (tmp_path / "out/lease.json").exists()
