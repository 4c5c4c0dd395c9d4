"""What can go wrong with real processes, and that the tables are then those of a run in which nothing did.

What happens to Ray's workers is tested with Ray. What happens to the driver, the disk or the dataset is the same for
every executor: there the one worker is in the driver's process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.storage.local import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from tests.support.demo_pairs import random_pairs
from tests.support.faults import METRIC, marks
from tests.support.faulty_runs import (
    ANSWERS,
    CHUNK,
    EXITS,
    HANGS,
    N_PAIRS,
    NAN,
    PARTITION,
    RAISES,
    SEGFAULTS,
    Runs,
    assert_same_tables,
    committed,
    poison,
)
from tests.support.jobs import Ended, in_words, read_table
from tests.support.require import require

pytestmark = pytest.mark.slow

HUNG_SECONDS = 15
"""Also the longest that loading may take."""
POISON = {RAISES: "raise", NAN: "nan", EXITS: "exit", SEGFAULTS: "segfault"}


@pytest.fixture(scope="module")
def poisoned(runs: Runs) -> tuple[Path, Ended]:
    out = runs.job.folder / "poisoned"
    # Two pairs in a chunk: each of the two that end workers ends four of them.
    job = runs.write("poisoned.yaml", chunk_pairs=2)
    return out, runs.run(out, job=job, env=runs.environment(poison=poison(POISON)))


def test_poison_costs_the_pairs_that_are_poison_and_no_others(
    runs: Runs, poisoned: tuple[Path, Ended], undisturbed: Path
) -> None:
    out, ended = poisoned
    assert ended.code == 3, ended.said
    assert f"{N_PAIRS - 4} of {N_PAIRS} pairs scored, 4 in failures" in ended.said
    assert_same_tables(out, undisturbed, without=set(POISON))
    failures = {row["pair_id"]: row for row in read_table(out, "failures").iter_rows(named=True)}
    reasons = {pair: (row["stage"], row["error"]) for pair, row in failures.items()}
    assert reasons == {
        RAISES: ("score", "scoring_error"), NAN: ("score", "non_finite"),
        EXITS: ("worker", "worker_lost"), SEGFAULTS: ("worker", "worker_lost"),
    }  # fmt: skip
    assert "this pair has no metric" in failures[RAISES]["message"]
    for pair in (EXITS, SEGFAULTS):
        assert "ActorDiedError" in failures[pair]["message"]
        assert failures[pair]["attempts"] >= 4
    losses = failures[EXITS]["attempts"] + failures[SEGFAULTS]["attempts"]
    assert ended.said.count("a worker was lost") == losses


def test_retried_failures_are_computed_again_and_nothing_else_is(
    runs: Runs, poisoned: tuple[Path, Ended], undisturbed: Path
) -> None:
    out, _ = poisoned
    failed = {path.name for path in out.glob("failures/**/*.parquet")}
    before = {path: path.stat().st_mtime_ns for path in committed(out)}
    ended = runs.run(out, "--retry-failures", "--local", job=runs.write("poisoned.yaml", chunk_pairs=2))
    assert ended.code == 0, ended.said
    assert f"{N_PAIRS} of {N_PAIRS} pairs scored, 0 in failures" in ended.said
    assert {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp} == failed
    assert_same_tables(out, undisturbed)


def test_an_actor_that_exits_at_any_step_of_a_commit_costs_nothing(runs: Runs, undisturbed: Path) -> None:
    out = runs.job.folder / "exits"
    steps = [
        {"at": moment, "path": f"/{table}/.*part-{start:09d}-", "target": "worker"}
        for start, (table, moment) in zip(
            range(0, N_PAIRS, 3 * CHUNK),
            [("baselines", "before"), ("baselines", "after"), ("scores", "before"), ("scores", "after")],
            strict=False,
        )
    ]
    env = runs.environment(faults=steps)
    ended = runs.run(out, env=env, job=runs.write("exits.yaml", count=2, cpus=0.5))
    assert ended.code == 0, ended.said
    assert marks(env) == set(range(4))
    assert ended.said.count("a worker was lost") == 4
    assert_same_tables(out, undisturbed)


WITH_RAY = {("/scores/.*part-", "before"), ("/failures/.*part-", "after")}
"""Steps of a commit at which the driver of Ray's workers is killed, who go on for a while without it."""


@pytest.mark.timeout(600)  # ten runs
def test_a_driver_killed_at_each_step_in_turn_is_resumed_every_time(runs: Runs, undisturbed: Path) -> None:
    out = runs.job.folder / "killed"
    # The worker goes on without its driver, and commits what it has in hand: each step needs a chunk that is not done.
    late = poison({HANGS: "nan", SEGFAULTS: "raise"})
    for path, moment in (
        ("lease.json$", "after"), ("manifest.json$", "before"), ("manifest.json$", "after"), ("/logs/.*jsonl$", "open"),
        ("/baselines/.*part-", "after"), ("/scores/.*part-", "before"), ("/scores/.*part-", "after"),
        ("/failures/.*part-", "before"), ("/failures/.*part-", "after"),
    ):  # fmt: skip
        env = runs.environment(faults=[{"at": moment, "path": path, "target": "driver"}], poison=late)
        with_ray = (path, moment) in WITH_RAY
        ended = runs.run(out, *(() if with_ray else ("--local",)), env=env)
        assert ended.code == -signal.SIGKILL, ended.said
        assert marks(env) == {0}
        runs.shared.wait_until_workers_are_gone()
    partition = out / "scores" / PARTITION
    (partition / f"{TEMPORARY_PREFIX}0-part-000000000-000000008.parquet{TEMPORARY_SUFFIX}").write_bytes(b"PAR1\0\0")
    ended = runs.run(out, "--local", env=runs.environment(poison=late))
    assert ended.code == 3, ended.said
    assert f"{N_PAIRS - 2} of {N_PAIRS} pairs scored, 2 in failures" in ended.said
    assert_same_tables(out, undisturbed, without={HANGS, SEGFAULTS})


def test_workers_that_never_start_end_the_run_with_their_error(runs: Runs, undisturbed: Path) -> None:
    """The driver is no fork: one that has imported nnsight has its workers import it before they load."""
    out = runs.job.folder / "unstarted"
    ended = runs.run(out, env=runs.environment(faults=[{"at": "start"}] * 3), fresh=True)
    assert ended.code == 1, ended.said
    assert "3 starts of 1 worker failed and none succeeded; the last one said: ImportError: libcudart.so.99" in (
        ended.said
    )
    ended = runs.run(out, env=runs.environment(faults=[{"at": "start"}]), fresh=True)
    assert ended.code == 0, ended.said
    assert "a worker could not start: ImportError: libcudart.so.99" in ended.said
    assert_same_tables(out, undisturbed)


BROKEN_FROM = 80
"""The metric breaks for every pair from here on: a table all of whose later pairs have one answer."""


def breaking(runs: Runs, file: str, *, n_pairs: int = N_PAIRS, chunk_pairs: int = CHUNK, **workers: object) -> Path:
    """Write the job of a table whose pairs from ``BROKEN_FROM`` on have the answer of the pair ``RAISES``."""
    pairs = runs.job.folder / f"{file}.parquet"
    # Without groups, so that chunks end where a test says.
    rows = [replace(row, group=None) for row in in_words(random_pairs(N_PAIRS, 9, 4))]
    rows[BROKEN_FROM:] = [replace(row, answers=(f" {ANSWERS[RAISES]}",)) for row in rows[BROKEN_FROM:]]
    write_pairs(pairs, rows[BROKEN_FROM - n_pairs // 2 : BROKEN_FROM + n_pairs // 2])
    model = {"id": str(runs.job.model), "name": "tiny", "prepend_bos": False, "workers": workers}
    return runs.job.write(
        file, models=[model], datasets=[{"id": "random", "path": str(pairs)}],
        methods=[{"id": "atp", "metric": METRIC}], chunk_pairs=chunk_pairs,
    )  # fmt: skip


def test_a_metric_that_breaks_in_mid_run_ends_it_and_costs_no_pair(runs: Runs) -> None:
    out, job = runs.job.folder / "broken", breaking(runs, "broken.yaml")
    ended = runs.run(out, job=job, env=runs.environment(poison=poison({RAISES: "break"})))
    assert ended.code == 1, ended.said
    said = "all 8 pairs of atp ended in the same exception: KeyError: 'missing thing'"
    assert f"{said}. What is committed stays; mend the cause and run the same command again." in ended.said
    # Two tasks are in hand at once, and it may be either of them that fails first.
    assert 2 <= ended.said.count("a worker is replaced: ") <= 3
    assert "a worker was lost" not in ended.said
    assert not list(out.glob("failures/**/*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in committed(out)}
    scored = set(read_table(out, "baselines")["pair_id"])
    assert scored <= set(range(BROKEN_FROM))
    assert len(scored) >= BROKEN_FROM - 2 * CHUNK
    [log] = out.glob("logs/*.jsonl")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events.count("task_failed") == ended.said.count("a worker is replaced: ")
    ended = runs.run(out, "--local", job=job)
    assert ended.code == 0, ended.said
    assert read_table(out, "baselines")["pair_id"].to_list() == list(range(N_PAIRS))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_a_metric_that_breaks_in_every_rank_of_a_gang_ends_the_run_and_a_pair_alone_is_a_failure(runs: Runs) -> None:
    out = runs.job.folder / "broken-gang"
    shards = {"kind": "sharded", "shards": 2, "cpus": 0.5}
    job = breaking(runs, "gang.yaml", n_pairs=8, chunk_pairs=7, **shards)
    ended = runs.run(out, job=job, env=runs.environment(poison=poison({RAISES: "break"})))
    # Of the first seven pairs four are scored. Beside the last one, which is alone, the ranks score a made-up pair.
    assert ended.code == 3, ended.said
    assert [*read_table(out, "failures")["pair_id"]] == [*range(BROKEN_FROM, BROKEN_FROM + 4)]
    assert "a worker is replaced" not in ended.said
    out = runs.job.folder / "broken-gang-2"
    job = breaking(runs, "gang-2.yaml", n_pairs=8, chunk_pairs=4, **shards)
    ended = runs.run(out, job=job, env=runs.environment(poison=poison({RAISES: "break"})))
    assert ended.code == 1, ended.said
    assert "all 4 pairs of atp ended in the same exception: KeyError: 'missing thing'" in ended.said
    assert not list(out.glob("failures/**/*.parquet"))


def test_a_worker_that_hangs_is_replaced(runs: Runs, undisturbed: Path) -> None:
    out = runs.job.folder / "hung"
    with runs.started(out, runs.write("hung.yaml", timeout_seconds=HUNG_SECONDS)) as driver:
        [worker] = runs.shared.workers()
        worker.suspend()
        said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    assert f"it finished nothing for {HUNG_SECONDS} s and was taken for hung" in said
    assert_same_tables(out, undisturbed)


def test_a_second_driver_is_refused_and_the_first_goes_on(runs: Runs, undisturbed: Path) -> None:
    out = runs.job.folder / "two"
    with runs.started(out, None, "--local", slow=0.1) as driver:
        second = runs.run(out, "--local")
        assert driver.poll() is None, "the first was done too early for this test"
        said, _ = driver.communicate(timeout=120)
    assert second.code == 2, second.said
    assert f"another driver runs in {out}: process {driver.pid} on " in second.said
    assert driver.returncode == 0, said
    assert not (out / "lease.json").exists()
    assert_same_tables(out, undisturbed)


def test_sigterm_stops_cleanly(runs: Runs) -> None:
    out = runs.job.folder / "terminated"
    with runs.started(out, None, "--local") as driver:
        os.kill(driver.pid, signal.SIGTERM)
        said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1, said
    assert "The same command goes on from there" in said
    assert not (out / "lease.json").exists()
    [record] = out.glob("executions/*.json")
    assert json.loads(record.read_text())["pairs_scored"] == len(committed(out)) * CHUNK < N_PAIRS


def test_a_dataset_that_is_replaced_in_mid_run_is_noticed(runs: Runs, undisturbed: Path) -> None:
    out, pairs = runs.job.folder / "replaced", runs.job.pairs
    original = pairs.with_suffix(".original")
    shutil.copyfile(pairs, original)
    try:
        with runs.started(out, None, "--local") as driver:
            write_pairs(pairs, in_words(random_pairs(N_PAIRS, 9, 4, seed=7)))
            said, _ = driver.communicate(timeout=60)
    finally:
        original.replace(pairs)
    assert driver.returncode == 2, said
    assert f"{pairs} has changed since the run began" in said
    assert 0 < len(committed(out)) < N_PAIRS // CHUNK
    ended = runs.run(out, "--local")
    assert ended.code == 0, ended.said
    assert_same_tables(out, undisturbed)


def test_rows_that_cannot_be_read_are_named_when_all_others_are_committed(runs: Runs, undisturbed: Path) -> None:
    out, damaged = runs.job.folder / "damaged", runs.job.folder / "damaged.parquet"
    damaged.write_bytes(runs.job.pairs.read_bytes())
    column = pq.read_metadata(damaged).row_group(1).column(1)
    with damaged.open("r+b") as file:
        file.seek(column.data_page_offset + 30)
        file.write(b"\xff" * (column.total_compressed_size - 40))
    job = runs.job.write(
        "damaged.yaml", datasets=[{"id": "random", "path": str(damaged)}],
        methods=[{"id": "atp", "metric": METRIC}], chunk_pairs=CHUNK,
    )  # fmt: skip
    ended = runs.run(out, job=job)
    assert ended.code == 2, ended.said
    assert f"{damaged}: rows 40 to 47 cannot be read" in ended.said
    assert "40 pairs could not be read; all others are committed" in ended.said
    scored = set(read_table(out, "baselines")["pair_id"])
    assert scored == {*range(40), *range(80, N_PAIRS)}


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True
    ).returncode == 0  # fmt: skip
    require(bool(mounted), "a file system of its own can be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_and_with_more_room_it_goes_on(runs: Runs, undisturbed: Path) -> None:
    with small_disk(runs.job.folder / "disk", "size=160k") as disk:
        ended = runs.run(disk / "out", "--local")
        assert ended.code == 1, ended.said
        assert "No space left on device. Free the disk" in ended.said
        assert 0 < len(committed(disk / "out")) < N_PAIRS // CHUNK
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        ended = runs.run(disk / "out", "--local")
        assert ended.code == 0, ended.said
        assert_same_tables(disk / "out", undisturbed)


def test_an_output_that_cannot_be_written_is_refused_at_once(runs: Runs) -> None:
    with small_disk(runs.job.folder / "read-only", "ro,size=64k") as disk:
        ended = runs.run(disk / "out", "--local")
    assert ended.code == 2, ended.said
    assert f"cannot write {disk}/out/" in ended.said
    assert "Read-only file system" in ended.said
