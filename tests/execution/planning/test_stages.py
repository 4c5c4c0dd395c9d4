"""A stage that may begin: which of its cells are asked for, what waits, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attrib_batch.execution.planning.opening import open_run
from attrib_batch.execution.planning.stages import OpenRun, Scoring
from attrib_batch.spec import Cell, parse_spec
from attrib_batch.tables import FAILURES, SCORES, Chunk, Table, find_manifest
from tests.support.jobs import TinyJob

N_PAIRS = 12
CELL = Cell("tiny", "random", "atp")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


def opened(job: TinyJob, out: Path, *, retry_failures: bool = False, **changes: Any) -> OpenRun:
    run = open_run(
        parse_spec(job.data(**{"chunk_pairs": 4, **changes}), source="job"), out, retry_failures=retry_failures
    )
    run.lease.release()
    return run


def commit(run: OpenRun, start: int, stop: int, *, failures: bool = False, cell: Cell = CELL) -> None:
    chunk = Chunk(cell, start, stop)
    if failures:
        run.store.write_table(chunk.path(Table.FAILURES), FAILURES.empty_table())
    run.store.write_table(chunk.path(Table.SCORES), SCORES.empty_table())


def test_what_is_committed_does_not_wait(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path)
    commit(run, 4, 8)
    stage = Scoring().plan(run)
    assert stage.waiting == {"tiny": [(Chunk(CELL, 0, 4),), (Chunk(CELL, 8, 12),)]}
    assert (stage.n_pairs, stage.n_waiting) == (N_PAIRS, {"tiny": 8})


@pytest.mark.parametrize(("retry", "waiting"), [(False, []), (True, [(4, 8)])])
def test_chunks_with_failures_wait_again_where_that_is_asked(
    retry: bool, waiting: list[tuple[int, int]], job: TinyJob, tmp_path: Path
) -> None:
    run = opened(job, tmp_path, retry_failures=retry)
    for start in (0, 4, 8):
        commit(run, start, start + 4, failures=start == 4)
    stage = Scoring().plan(run)
    assert [(chunk.start, chunk.stop) for task in stage.waiting["tiny"] for chunk in task] == waiting
    assert stage.n_waiting == {"tiny": 4 * len(waiting)}


def test_a_stage_has_the_cells_that_are_asked_for_not_all_that_the_directory_holds(
    job: TinyJob, tmp_path: Path
) -> None:
    methods = [{"id": "atp"}, {"id": "noise", "kind": "atp", "direction": "noise"}]
    before = opened(job, tmp_path, methods=methods)
    commit(before, 0, 4)
    run = opened(job, tmp_path, methods=methods[1:])
    assert {plan.method for plan in run.manifest.scoring.cells} == {"atp", "noise"}
    stage = Scoring().plan(run)
    assert [plan.method for plan in stage.cells] == ["noise"]
    assert (stage.n_pairs, stage.n_waiting) == (N_PAIRS, {"tiny": N_PAIRS})


def test_pairs_count_once_for_each_cell_and_by_model(job: TinyJob, tmp_path: Path) -> None:
    models = [{"id": str(job.model), "name": name, "prepend_bos": False} for name in ("one", "two")]
    methods = [{"id": "atp"}, {"id": "noise", "kind": "atp", "direction": "noise"}]
    run = opened(job, tmp_path, models=models, methods=methods)
    commit(run, 0, 4, cell=Cell("one", "random", "noise"))
    stage = Scoring().plan(run)
    assert stage.n_pairs == 4 * N_PAIRS
    assert stage.n_waiting == {"one": 2 * N_PAIRS - 4, "two": 2 * N_PAIRS}


def test_a_manifest_that_is_written_is_in_force(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path)
    changed = run.manifest.model_copy(update={"run_id": "another"})
    run.write_manifest(changed)
    assert run.manifest == changed == find_manifest(run.store)
