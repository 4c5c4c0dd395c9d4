"""What the driver makes of what an executor tells it, without any worker: stages, models side by side, losses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attrib_batch.errors import DatasetError, ExitCode, RunInterruptedError
from attrib_batch.execution.driver import RunResult, run_stages
from attrib_batch.execution.events import TaskFailed, TaskUnreadable, WorkerId, WorkerLost
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.observe.progress import Snapshot
from attrib_batch.spec import parse_spec
from tests.support.jobs import TinyJob, read_table
from tests.support.scripted_executor import ScriptedExecutor

N_PAIRS, CHUNK = 12, 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@dataclass
class View:
    """What a person is shown."""

    notes: list[str] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    closed: list[Snapshot] = field(default_factory=list)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def close(self, snapshot: Snapshot) -> None:
        self.closed.append(snapshot)


def models(job: TinyJob, *names: str) -> list[dict[str, Any]]:
    return [{"id": str(job.model), "name": name, "prepend_bos": False} for name in names]


def run(job: TinyJob, out: Path, executor: ScriptedExecutor, view: View | None = None, **changes: Any) -> RunResult:
    spec = parse_spec(job.data(**{"chunk_pairs": CHUNK, **changes}), source="job")
    return run_stages(open_run(spec, out), executor, view or View())


def events_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in out.glob("logs/*.jsonl") for line in path.read_text().splitlines()]


def test_every_chunk_is_given_once_and_the_run_says_so(job: TinyJob, tmp_path: Path) -> None:
    executor, view = ScriptedExecutor(), View()
    result = run(job, tmp_path, executor, view)
    assert [assignment.rows for _, assignment in executor.given] == [(0, 4), (4, 8), (8, 12)]
    assert (result.scoring.expected, result.scoring.scored, result.exit_code) == (N_PAIRS, N_PAIRS, ExitCode.OK)
    assert (executor.entered, executor.exited) == (1, 1)
    assert executor.ended == executor.started, "what is not needed any more is ended"
    assert [(end.done, end.total) for end in view.closed] == [(N_PAIRS, N_PAIRS)]
    assert not (tmp_path / "lease.json").exists()


def test_nothing_is_started_where_nothing_is_left(job: TinyJob, tmp_path: Path) -> None:
    run(job, tmp_path, ScriptedExecutor())
    again = ScriptedExecutor()
    result = run(job, tmp_path, again)
    assert (again.entered, again.given) == (0, [])
    assert (result.scoring.scored, result.tally.scored) == (N_PAIRS, 0)


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
    result = run(job, tmp_path, executor, chunk_pairs=1, datasets=[{"id": "random", "path": str(job.pairs)}])
    assert result.exit_code == ExitCode.SOME_FAILED
    assert (result.scoring.failed, executor.n_given_up, result.tally.failed) == (1, 1, 1)
    [row] = read_table(tmp_path, "failures").iter_rows(named=True)
    assert (row["pair_id"], row["error"], row["message"].split(" (")[0]) == (8, "worker_lost", "killed")


def test_pairs_that_cannot_be_read_are_named_when_all_others_are_committed(job: TinyJob, tmp_path: Path) -> None:
    def outcome(worker: WorkerId, assignment: Assignment) -> TaskUnreadable | None:
        return TaskUnreadable(worker, assignment, "rows 4 to 7 cannot be read") if assignment.rows[0] == 4 else None

    with pytest.raises(DatasetError, match=r"rows 4 to 7 cannot be read\n4 pairs could not be read; all others are"):
        run(job, tmp_path, ScriptedExecutor(outcome=outcome))
    assert len(list(tmp_path.glob("scores/**/*.parquet"))) == 2


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


def test_the_second_stage_begins_when_the_first_is_committed_and_workers_go_on(job: TinyJob, tmp_path: Path) -> None:
    """Empty tables have no pair to sample: what is asked of the second stage is refused, and the first stays."""
    from attrib_batch.errors import RequestError

    executor = ScriptedExecutor()
    with pytest.raises(RequestError, match="no pair of dataset random is scored by every method yet"):
        run(job, tmp_path, executor, verify={"pairs": 2})
    assert len(list(tmp_path.glob("scores/**/*.parquet"))) == 3
    assert (executor.entered, executor.exited) == (1, 1)
    started = [event["stage"] for event in events_of(tmp_path) if event["event"] == "stage_started"]
    assert started == ["scoring"]
    assert not (tmp_path / "lease.json").exists()


def test_a_chunk_that_vanishes_is_missed(job: TinyJob, tmp_path: Path) -> None:
    def outcome(worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[0] == 8:
            for path in tmp_path.glob("scores/**/*.parquet"):
                path.unlink()

    with pytest.raises(RunInterruptedError, match="2 chunks were committed and are not in"):
        run(job, tmp_path, ScriptedExecutor(outcome=outcome))
