"""A stage that may begin: which of its cells are asked for, what waits, and what is counted."""

from __future__ import annotations

import json
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


def test_a_pair_and_its_mirror_are_in_one_chunk_and_methods_share_it(job: TinyJob, tmp_path: Path) -> None:
    methods = [{"id": "atp"}, {"id": "noise", "kind": "atp", "direction": "noise"}]
    stage = Scoring().plan(opened(job, tmp_path, chunk_pairs=5, methods=methods))
    cells = (CELL, Cell("tiny", "random", "noise"))
    assert stage.waiting == {
        "tiny": [tuple(Chunk(cell, start, stop) for cell in cells) for start, stop in ((0, 6), (6, 10), (10, 12))]
    }


def test_a_run_whose_limit_is_raised_keeps_its_chunks_and_cuts_the_rest_between_groups(
    job: TinyJob, tmp_path: Path
) -> None:
    dataset = {"id": "random", "path": str(job.pairs)}
    first = opened(job, tmp_path, chunk_pairs=3, datasets=[{**dataset, "limit": 5}])
    commit(first, 0, 4)
    stage = Scoring().plan(opened(job, tmp_path, chunk_pairs=3, datasets=[dataset]))
    waiting = [(chunk.start, chunk.stop) for task in stage.waiting["tiny"] for chunk in task]
    # Row 4 was the last one, without its mirror; it is planned and may be in a worker's hands.
    assert waiting == [(4, 5), (5, 8), (8, 12)]


def test_a_run_of_the_release_before_goes_on_with_the_chunks_it_has(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path, chunk_pairs=5)
    data = json.loads(run.manifest.to_bytes())
    assert data["stages"][0]["cells"][0]["segments"][0].pop("moved") == {"5": 6}
    run.store.write_bytes("manifest.json", json.dumps({**data, "manifest_version": 2}).encode())
    commit(run, 0, 5)
    stage = Scoring().plan(opened(job, tmp_path, chunk_pairs=5))
    assert [(chunk.start, chunk.stop) for task in stage.waiting["tiny"] for chunk in task] == [(5, 10), (10, 12)]
    found = find_manifest(run.store)
    assert found is not None
    assert found.manifest_version == 3
