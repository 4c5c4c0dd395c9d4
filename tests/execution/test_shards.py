"""Gangs of shards as workers of real runs: the same tables as a replica's, whatever becomes of a rank."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.jobs import TinyJob, attrib_batch_here
from tests.support.processes import is_gone
from tests.support.same_tables import Tables, assert_same_numbers
from tests.support.shared_ray import SharedRay

SHARDED = {"kind": "sharded", "shards": 2, "cpus": 0.5}
METHODS = [
    {"id": "atp", "components": ["z", "q", "k", "mlp_out", "resid_post"]},
    {"id": "noise", "kind": "atp", "direction": "noise", "metric": "prob_diff"},
    {"id": "exact", "components": ["z"]},
    {"id": "mean", "kind": "atp", "components": ["z", "mlp_out"], "reference": "mean"},
    {"id": "whole", "kind": "atp", "metric": "sequence_logprob_diff"},
]
COLLECTIVE_SECONDS = 8.0


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=40)


def models(job: TinyJob, **workers: object) -> list[dict[str, object]]:
    return [{"id": str(job.model), "name": "tiny", "prepend_bos": False, "workers": SHARDED | workers}]


@pytest.fixture(scope="module")
def replica(job: TinyJob) -> Path:
    out = job.folder / "replica"
    ended = attrib_batch_here("run", job.write("replica.yaml", methods=METHODS, chunk_pairs=2), "--out", out)
    assert ended.code == 0, ended.said
    return out


def assert_same_tables(out: Path, expected: Path) -> None:
    assert_same_numbers(Tables.read(out), Tables.read(expected))


def test_gangs_side_by_side_write_what_a_replica_writes(
    shared_ray: SharedRay, job: TinyJob, replica: Path, tmp_path: Path
) -> None:
    path = job.write("gang.yaml", models=models(job, count=2, cpus=0.25), methods=METHODS, chunk_pairs=10)
    ended = shared_ray.run("run", path, "--out", tmp_path / "out")
    assert ended.code == 0, ended.said
    assert_same_tables(tmp_path / "out", replica)
    (record,) = (json.loads(file.read_text()) for file in (tmp_path / "out/executions").glob("*.json"))
    whole = json.loads(next((replica / "executions").glob("*.json")).read_text())["worker_parameters"]
    assert 0.5 * whole <= record["worker_parameters"] < 0.6 * whole


BLOWS = [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)]
"""Signals, each with the rank that gets it."""


def test_ranks_that_are_lost_or_stuck_cost_no_pair(
    shared_ray: SharedRay, job: TinyJob, replica: Path, tmp_path: Path
) -> None:
    """One run that suffers all blows, each in another gang: to start gangs is what such runs cost."""
    out = tmp_path / "out"
    path = job.write(
        "blows.yaml", models=models(job, collective_seconds=COLLECTIVE_SECONDS), methods=METHODS, chunk_pairs=4
    )

    def wait_until(happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not happened():
            assert driver.poll() is None, driver.said()
            assert time.monotonic() < deadline, driver.said()
            time.sleep(0.01)

    def committed() -> int:
        return len(list(out.glob("scores/**/part-*.parquet")))

    struck: list[psutil.Process] = []
    with shared_ray.start("run", path, "--out", out) as driver:
        for n_lost, (number, rank) in enumerate(BLOWS):
            before = committed()
            # Of this gang's own: then it has the next task in hand.
            wait_until(lambda before=before: committed() > before)
            gang = [process for process in shared_ray.workers("ShardWorker") if process not in struck]
            assert len(gang) == 2
            struck += gang
            os.kill(gang[rank].pid, number)
            wait_until(lambda n_lost=n_lost: driver.said().count("a worker was lost") > n_lost)
        said, _ = driver.communicate(timeout=150)
    assert driver.returncode == 0, said
    assert said.count("a worker was lost") == len(BLOWS)
    assert_same_tables(out, replica)
    assert all(is_gone(process) for process in struck)


def test_an_impossible_number_of_shards_is_refused_before_anything_starts(job: TinyJob, tmp_path: Path) -> None:
    path = job.write("three.yaml", models=models(job, shards=3))
    ended = attrib_batch_here("run", path, "--out", tmp_path / "out", local=False)
    assert ended.code == 2
    assert "cannot be split into 3 shards" in ended.said
    assert "possible: 2" in ended.said
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path / "job", n_pairs=4, architecture="gpt2")
    ended = attrib_batch_here("run", job.write(models=models(job)), "--out", tmp_path / "out", local=False)
    assert ended.code == 2
    assert "gpt2 has no tensor-parallel plan" in ended.said
    assert "replica" in ended.said


def test_a_gang_that_fits_on_no_node_is_refused(shared_ray: SharedRay, job: TinyJob, tmp_path: Path) -> None:
    path = job.write("large.yaml", models=models(job, cpus=2))
    ended = shared_ray.run("run", path, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "1 workers of 2 shards each ask for" in " ".join(ended.said.split())
