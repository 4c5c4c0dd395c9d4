"""What one stage makes of its workers: models side by side, losses, starts that fail, room that comes and goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attrib_batch.errors import ExitCode, RunInterruptedError
from attrib_batch.execution.events import TaskFailed, WorkerId, WorkerLost
from attrib_batch.execution.scheduling.assignment import Assignment
from tests.support.jobs import TinyJob, read_table
from tests.support.scripted_executor import ScriptedExecutor
from tests.support.scripted_runs import N_PAIRS, View, events_of, models, run


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


def test_all_models_are_worked_on_side_by_side(job: TinyJob, tmp_path: Path) -> None:
    executor = ScriptedExecutor(workers={"one": 2, "two": 1})
    run(job, tmp_path, executor, models=models(job, "one", "two"))
    assert frozenset({"one", "two"}) in executor.side_by_side
    assert {worker.model for worker, _ in executor.given} == {"one", "two"}
    assert len(executor.given) == 6


def test_a_model_without_room_waits_until_another_is_done(job: TinyJob, tmp_path: Path) -> None:
    executor = ScriptedExecutor(total=1)
    run(job, tmp_path, executor, models=models(job, "one", "two"))
    assert executor.side_by_side == {frozenset({"one"}), frozenset({"two"})}
    assert executor.started == [WorkerId("one", 0), WorkerId("two", 0)]


def test_a_lost_worker_is_replaced_and_its_task_done_again(job: TinyJob, tmp_path: Path) -> None:
    lost: list[WorkerId] = []

    def outcome(worker: WorkerId, assignment: Assignment) -> WorkerLost | None:
        if assignment.rows == (4, 8) and not lost:
            lost.append(worker)
            return WorkerLost(worker, "it died")
        return None

    executor, view = ScriptedExecutor(outcome=outcome), View()
    assert run(job, tmp_path, executor, view).scoring.scored == N_PAIRS
    assert "a worker was lost: it died" in view.notes
    assert executor.started == [WorkerId("tiny", 0), WorkerId("tiny", 1)]


def test_a_pair_that_ends_every_worker_is_committed_to_failures_by_the_driver(job: TinyJob, tmp_path: Path) -> None:
    def outcome(worker: WorkerId, assignment: Assignment) -> WorkerLost | None:
        start, stop = assignment.rows
        left_out = {item.row for item in assignment.left_out}
        return WorkerLost(worker, "killed") if start <= 8 < stop and 8 not in left_out else None

    executor = ScriptedExecutor(outcome=outcome)
    dataset = {"id": "random", "path": str(job.pairs), "limit": 9}
    result = run(job, tmp_path, executor, chunk_pairs=8, datasets=[dataset])
    assert result.exit_code == ExitCode.SOME_FAILED
    assert (result.scoring.failed, executor.n_given_up, result.tally.failed) == (1, 1, 1)
    [row] = read_table(tmp_path, "failures").iter_rows(named=True)
    assert (row["pair_id"], row["error"], row["message"].split(" (")[0]) == (8, "worker_lost", "killed")


def fails_as_a_whole(worker: WorkerId, assignment: Assignment) -> TaskFailed | None:
    return TaskFailed(worker, assignment, "KeyError: 'x'") if worker.model == "one" else None


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"outcome": fails_as_a_whole}, "a task failed on 2 workers .* KeyError"),
        ({"fails_to_start": {"one"}}, "3 starts of 1 worker failed and none succeeded; the last one said: no memory"),
    ],
    ids=["task fails", "no start"],
)
def test_a_model_that_cannot_go_on_ends_the_run_when_the_others_have_finished_what_they_hold(
    script: dict[str, Any], says: str, job: TinyJob, tmp_path: Path
) -> None:
    executor = ScriptedExecutor(**script)
    with pytest.raises(RunInterruptedError, match=says):
        run(job, tmp_path, executor, models=models(job, "one", "two"))
    begun = {assignment.rows for worker, assignment in executor.given if worker.model == "two"}
    assert len(list(tmp_path.glob("scores/model=two/**/*.parquet"))) == len(begun)
    assert not list(tmp_path.glob("scores/model=one/**/*.parquet"))
    assert events_of(tmp_path)[-1]["exit_code"] == ExitCode.UNFINISHED


def test_workers_that_wait_for_room_are_told_of(job: TinyJob, tmp_path: Path) -> None:
    view = View()
    run(job, tmp_path, ScriptedExecutor(no_room="1 workers wait for room"), view)
    assert "tiny: 1 workers wait for room" in view.notes
    [event] = [event for event in events_of(tmp_path) if event["event"] == "workers_unplaced"]
    assert (event["level"], event["message"]) == ("warning", "1 workers wait for room")


def test_another_number_of_workers_is_told_of(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, _assignment: Assignment) -> None:
        executor.total = 2

    executor, view = ScriptedExecutor(outcome=outcome, workers={"tiny": 3}, total=1), View()
    run(job, tmp_path, executor, view)
    assert "tiny: workers 2, as there is room now" in view.notes
    assert executor.started == [WorkerId("tiny", 0), WorkerId("tiny", 1)]
    assert [event["count"] for event in events_of(tmp_path) if event["event"] == "workers_wanted"] == [2]


def test_a_worker_that_could_not_start_is_told_of(job: TinyJob, tmp_path: Path) -> None:
    view = View()
    with pytest.raises(RunInterruptedError, match="none succeeded"):
        run(job, tmp_path, ScriptedExecutor(fails_to_start={"tiny"}), view)
    assert view.notes.count("a worker could not start: no memory") == 3
    failed = [event for event in events_of(tmp_path) if event["event"] == "worker_failed_to_start"]
    assert [event["worker"] for event in failed] == [0, 1, 2]
