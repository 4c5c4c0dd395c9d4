"""The worker that owns a model, in this process: what it commits, leaves out and only probes."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.execution.scheduling.assignment import Assignment, LeftOut
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, load_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.support.jobs import TinyJob, read_scores, read_table
from tests.support.same_tables import Tables, assert_same_numbers
from tests.support.worker_here import WorkerHere, replica_here

TASK = (Chunk(Cell("tiny", "random", "atp"), 8, 16),)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=20)


@pytest.fixture
def worker(job: TinyJob, tmp_path: Path) -> WorkerHere:
    fingerprints = {"random": PairTable.open(job.pairs).fingerprint()}
    worker = replica_here(load_spec(job.write()), Store(tmp_path / "out"), fingerprints)
    worker.load()
    return worker


def test_the_same_chunk_executed_twice_is_the_same_tables(worker: WorkerHere) -> None:
    out, first = worker.store.root, worker.score(Assignment(TASK))
    before = Tables.read(out)
    second = worker.score(Assignment(TASK))
    assert (first.n_scored, second.n_scored) == (8, 8)
    assert_same_numbers(Tables.read(out), before)


def test_a_probe_writes_nothing_and_counts_nothing(worker: WorkerHere) -> None:
    report = worker.score(Assignment(TASK, probe=(8, 10)))
    assert (report.n_scored, report.n_failed, report.score_rows) == (0, 0, 0)
    assert report.model_seconds > 0
    assert not worker.store.root.exists()


def test_pairs_that_are_left_out_are_failures_and_the_others_are_scored(worker: WorkerHere) -> None:
    report = worker.score(Assignment(TASK, (LeftOut(9, 4, "segfault"), LeftOut(15, 5, "killed"))))
    assert (report.n_scored, report.n_failed) == (6, 2)
    assert set(read_scores(worker.store.root)["pair_id"]) == {8, 10, 11, 12, 13, 14}
    rows = read_table(worker.store.root, "failures").select("pair_id", "stage", "error", "message", "attempts").rows()
    assert rows == [(9, "worker", "worker_lost", "segfault", 4), (15, "worker", "worker_lost", "killed", 5)]
