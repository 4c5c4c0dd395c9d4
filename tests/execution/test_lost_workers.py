"""Workers that pairs or the system end, in ways of which nobody is told, and that no other pair pays for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faulty_runs import EXITS, HANGS, N_PAIRS, Runs, assert_same_tables, poison
from tests.support.jobs import read_table
from tests.support.processes import is_gone
from tests.support.same_tables import Tables, assert_same_numbers

pytestmark = pytest.mark.slow

KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "2000", "RAY_grpc_client_keepalive_timeout_ms": "2000"}
"""Ray then takes a connection for broken when the other end says nothing for a few seconds, instead of minutes."""
HUNG_SECONDS = 15
"""Also the longest that loading may take."""
ALL_BUT_ONE = f"{N_PAIRS - 1} of {N_PAIRS} pairs scored, 1 in failures"
FEW = 80
"""Pairs of the run of a gang, half of the table: a gang takes four times the CPU that a replica does."""


@pytest.mark.timeout(600)  # four workers are waited for
def test_a_pair_that_hangs_its_worker_is_left_out_and_a_killed_worker_costs_nothing(
    runs: Runs, undisturbed: Path
) -> None:
    out, job = runs.job.folder / "hangs", runs.write("hangs.yaml", chunk_pairs=2, timeout_seconds=HUNG_SECONDS)
    with runs.started(out, job, poison=poison({HANGS: "hang"})) as driver:
        [worker] = runs.shared.workers()
        worker.kill()  # as the system does when memory runs out
        said, _ = driver.communicate(timeout=500)
    assert driver.returncode == 3, said
    assert ALL_BUT_ONE in said
    assert_same_tables(out, undisturbed, without={HANGS})
    [failure] = read_table(out, "failures").iter_rows(named=True)
    assert (failure["pair_id"], failure["stage"], failure["error"]) == (HANGS, "worker", "worker_lost")
    assert failure["message"] == f"it finished nothing for {HUNG_SECONDS} s and was taken for hung"
    assert failure["attempts"] == 4
    assert said.count("a worker was lost: ActorDiedError") == 1


@pytest.mark.timeout(600)  # five gangs are started
def test_a_pair_that_ends_a_rank_of_a_gang_is_left_out(runs: Runs, undisturbed: Path) -> None:
    out = runs.job.folder / "gang"
    shards = {"kind": "sharded", "shards": 2, "cpus": 0.5, "collective_seconds": 20}
    job = runs.write("gang.yaml", chunk_pairs=2, limit=FEW, **shards)
    ended = runs.run(out, job=job, seconds=500, env=runs.environment(poison=poison({EXITS: "exit"})))
    assert ended.code == 3, ended.said
    assert f"{FEW - 1} of {FEW} pairs scored, 1 in failures" in ended.said
    assert_same_numbers(Tables.read(out), Tables.read(undisturbed, without={EXITS, *range(FEW, N_PAIRS)}))
    [failure] = read_table(out, "failures").iter_rows(named=True)
    assert (failure["pair_id"], failure["stage"], failure["error"]) == (EXITS, "worker", "worker_lost")
    assert ended.said.count("a worker was lost") == failure["attempts"] == 4


def test_a_worker_out_of_reach_is_ended_before_its_chunk_is_done_again(
    runs: Runs, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEEPALIVE.items():
        monkeypatch.setenv(name, value)
    out = runs.job.folder / "unavailable"
    with runs.started(out, slow=0.2, own_ray=True) as driver:
        [worker] = runs.shared.workers()
        worker.suspend()
        said, _ = driver.communicate(timeout=150)
    assert driver.returncode == 0, said
    assert "a worker was lost: ActorUnavailableError" in said
    assert is_gone(worker)
    assert_same_tables(out, undisturbed)
