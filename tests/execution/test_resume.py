"""Killing and resuming real runs, and refusing to resume what has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from attrib_batch.pairs.making.writer import write_pairs
from tests.support.demo_pairs import random_pairs
from tests.support.faulty_runs import assert_same_tables as same_tables
from tests.support.jobs import TinyJob, attrib_batch, attrib_batch_here, in_words, read_scores
from tests.support.shared_ray import SharedRay

N_PAIRS, CHUNK = 400, 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def undisturbed(job: TinyJob) -> Path:
    out = job.folder / "undisturbed"
    ended = attrib_batch_here("run", job.write(chunk_pairs=CHUNK), "--out", out)
    assert ended.code == 0, ended.said
    return out


def committed(out: Path) -> int:
    return len(list(out.glob("scores/**/part-*.parquet")))


def executions(out: Path) -> list[dict[str, float]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("executions/*.json"))]


def start_and_signal(ray: SharedRay, job: TinyJob, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send its driver a signal once some chunks are committed, and wait for its end."""
    path = job.write(chunk_pairs=CHUNK)
    with ray.start("run", path, "--out", out) as driver:
        deadline = time.monotonic() + 120
        while committed(out) < 5:
            assert driver.poll() is None, driver.said()
            assert time.monotonic() < deadline, "no chunk was committed"
            time.sleep(0.005)
        os.kill(driver.pid, number)
        said, _ = driver.communicate(timeout=90)
    return driver.returncode, said


@pytest.mark.slow
def test_a_killed_driver_is_resumed_without_loss_or_repetition(
    shared_ray: SharedRay, job: TinyJob, undisturbed: Path
) -> None:
    out = job.folder / "killed"
    code, _ = start_and_signal(shared_ray, job, out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    wait_until_quiet(out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("scores/**/part-*.parquet")}
    assert 0 < len(before) < N_PAIRS // CHUNK

    ended = attrib_batch_here("run", job.write(chunk_pairs=CHUNK), "--out", out)
    assert ended.code == 0, ended.said
    assert "resuming" in ended.said
    [second] = executions(out)  # the killed one left no record
    assert second["pairs_committed_before"] == len(before) * CHUNK
    assert second["pairs_scored"] == N_PAIRS - len(before) * CHUNK
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert_same_tables(out, undisturbed)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(shared_ray: SharedRay, job: TinyJob, undisturbed: Path) -> None:
    out = job.folder / "interrupted"
    code, said = start_and_signal(shared_ray, job, out, signal.SIGINT)
    assert code == 1, said
    assert "The same command goes on from there" in said
    n_committed = committed(out)
    assert n_committed < N_PAIRS // CHUNK
    ended = attrib_batch_here("run", job.write(chunk_pairs=CHUNK), "--out", out)
    assert ended.code == 0, ended.said
    assert executions(out)[-1]["pairs_scored"] == N_PAIRS - n_committed * CHUNK
    assert_same_tables(out, undisturbed)


@pytest.mark.slow
def test_a_finished_run_computes_nothing_again(job: TinyJob, undisturbed: Path) -> None:
    ended = attrib_batch_here("run", job.write(chunk_pairs=CHUNK), "--out", undisturbed)
    assert ended.code == 0, ended.said
    assert executions(undisturbed)[-1]["pairs_scored"] == 0


@pytest.mark.slow
def test_workers_chunks_and_row_order_change_no_score(shared_ray: SharedRay, job: TinyJob, undisturbed: Path) -> None:
    out = job.folder / "other-way"
    rows = in_words(random_pairs(N_PAIRS // 2, 9, 4) + random_pairs(N_PAIRS // 2, 11, 5, seed=1))
    write_pairs(job.folder / "reversed.parquet", rows[::-1])
    path = job.write(
        "other.yaml",
        models=[
            {
                "id": str(job.model), "name": "tiny", "prepend_bos": False, "batch_tokens": 64,
                "workers": {"count": 2, "cpus": 0.5},
            }
        ],
        datasets=[{"id": "random", "path": str(job.folder / "reversed.parquet")}],
        chunk_pairs=64,
    )  # fmt: skip
    ended = shared_ray.run("run", path, "--out", out)
    assert ended.code == 0, ended.said
    assert_same_tables(out, undisturbed)


@pytest.mark.slow
def test_what_changed_is_named_and_refused(job: TinyJob, undisturbed: Path, tmp_path: Path) -> None:
    def refused(**changes: object) -> str:
        ended = attrib_batch(
            "run", job.write("changed.yaml", **{"chunk_pairs": CHUNK, **changes}), "--out", undisturbed
        )
        assert ended.code == 2, ended.said
        return ended.said

    assert 'method atp, direction: was "denoise", is now "noise"' in refused(
        methods=[{"id": "atp", "direction": "noise"}]
    )
    pairs = tmp_path / "other.parquet"
    write_pairs(pairs, in_words(random_pairs(N_PAIRS, 9, 4)))
    assert "dataset random, content: was" in refused(datasets=[{"id": "random", "path": str(pairs)}])
    model = TinyJob.make(tmp_path / "other", architecture="mistral", n_pairs=2).model
    assert "model tiny, weights: was" in refused(models=[{"id": str(model), "name": "tiny", "prepend_bos": False}])
    # How many workers there are is nobody's business but this execution's.
    ended = attrib_batch_here("run", job.write("more.yaml", name="renamed", chunk_pairs=CHUNK), "--out", undisturbed)
    assert ended.code == 0, ended.said


@pytest.mark.slow
def test_an_output_that_stops_taking_files_ends_the_run_and_loses_nothing(job: TinyJob, undisturbed: Path) -> None:
    out = job.folder / "blocked"
    shutil.copytree(undisturbed, out)
    partition = out / "scores/model=tiny/dataset=random/method=atp"
    shutil.rmtree(partition)
    partition.touch()  # a file where the folder must be: nobody can write below it, not even root
    ended = attrib_batch_here("run", job.write(chunk_pairs=CHUNK), "--out", out)
    assert ended.code == 1, ended.said
    assert "cannot write" in ended.said
    assert not list(out.glob("failures/**/*.parquet"))
    partition.unlink()
    ended = attrib_batch_here("run", job.write(chunk_pairs=CHUNK), "--out", out)
    assert ended.code == 0, ended.said
    assert_same_tables(out, undisturbed)


def wait_until_quiet(out: Path) -> None:
    """Workers of a killed driver may still finish the chunk in hand."""
    count = -1
    while (now := committed(out)) != count:
        count = now
        time.sleep(1.5)


def assert_same_tables(out: Path, expected: Path) -> None:
    """The same rows, once each, of every pair."""
    same_tables(out, expected)
    ours = read_scores(out)
    assert ours.group_by("pair_id").len().height == N_PAIRS
    assert ours.unique(pl.all().exclude("score")).height == ours.height
