"""A driver that has joined a cluster and loses its head: it says so in time, and another cluster goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from attrib_batch.execution.ray.head import RAY_PATIENCE
from tests.support.faulty_runs import assert_same_tables, committed
from tests.support.jobs import TinyJob, attrib_batch, attrib_batch_here, environment, start
from tests.support.ports import LOOPBACK, free_ports
from tests.support.ray_cluster import RayCluster
from tests.support.shared_ray import SharedRay

pytestmark = pytest.mark.slow

N_PAIRS, CHUNK = 600, 2
START_SECONDS = 120
PATIENCE = 20
"""Seconds that Ray waits for a head that is gone; its own minute is only longer to wait for."""


def joining(cluster: RayCluster) -> dict[str, str]:
    return environment() | cluster.joining | {RAY_PATIENCE: str(PATIENCE)}


@pytest.mark.timeout(600)  # two clusters are started
def test_a_run_that_loses_the_head_says_so_and_is_resumed_on_another_cluster(
    shared_ray: SharedRay, tmp_path: Path
) -> None:
    job, out = TinyJob.make(tmp_path / "job", n_pairs=N_PAIRS), tmp_path / "out"
    path = job.write(chunk_pairs=CHUNK)
    undisturbed = tmp_path / "undisturbed"
    ended = attrib_batch_here("run", job.write("undisturbed.yaml", chunk_pairs=100), "--out", undisturbed)
    assert ended.code == 0, ended.said

    (tmp_path / "first").mkdir()
    with RayCluster(tmp_path / "first") as cluster:
        cluster.add_node()
        with start("run", path, "--out", out, "--address", cluster.gcs_address, env=joining(cluster)) as driver:
            deadline = time.monotonic() + START_SECONDS
            while len(committed(out)) < 3:
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

        assert shared_ray.cluster.gcs_address != cluster.gcs_address
        ended = shared_ray.run("run", path, "--out", out, env=joining(shared_ray.cluster))
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
