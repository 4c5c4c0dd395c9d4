"""A run from stage to stage without any worker: what is planned, how it ends, and what is said, logged and kept."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attrib_batch.errors import (
    AttribBatchError,
    DatasetError,
    ExitCode,
    ModelError,
    OutputError,
    RequestError,
    RunInterruptedError,
    StoppedError,
)
from attrib_batch.execution.driver import RunResult, run_stages
from attrib_batch.execution.events import TaskDone, TaskUnreadable, WorkerId
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.task import TaskReport
from attrib_batch.storage import lease
from attrib_batch.storage.lease import Holder
from attrib_batch.tables import part_name
from tests.support.jobs import TinyJob
from tests.support.scripted_executor import ScriptedExecutor
from tests.support.scripted_runs import CHUNK, N_PAIRS, View, events_of, opened, record_of, run
from tests.support.synthetic_run import Pair, write_chunk


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


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


def test_strata_are_joined_once_all_chunks_are_committed(job: TinyJob, tmp_path: Path) -> None:
    run(job, tmp_path, ScriptedExecutor())
    assert [path.name for path in tmp_path.glob("strata/**/*.parquet")] == [part_name(0, N_PAIRS)]


def test_strata_that_cannot_be_joined_end_no_run(job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("attrib_batch.execution.driver.join_strata", refused)
    view = View()
    assert run(job, tmp_path, ScriptedExecutor(), view).exit_code == ExitCode.OK
    assert "the disk is full" in view.notes
    assert len(list(tmp_path.glob("strata/**/*.parquet"))) == N_PAIRS // CHUNK


def test_pairs_that_cannot_be_read_are_named_when_all_others_are_committed(job: TinyJob, tmp_path: Path) -> None:
    def outcome(worker: WorkerId, assignment: Assignment) -> TaskUnreadable | None:
        return TaskUnreadable(worker, assignment, "rows 4 to 7 cannot be read") if assignment.rows[0] == 4 else None

    with pytest.raises(DatasetError, match=r"rows 4 to 7 cannot be read\n4 pairs could not be read; all others are"):
        run(job, tmp_path, ScriptedExecutor(outcome=outcome))
    assert len(list(tmp_path.glob("scores/**/*.parquet"))) == 2


def test_the_second_stage_begins_when_the_first_is_committed_and_workers_go_on(job: TinyJob, tmp_path: Path) -> None:
    def outcome(worker: WorkerId, assignment: Assignment) -> TaskDone | None:
        """Commit scores of every pair, where a pair may be sampled for it later."""
        [chunk] = assignment.task
        if chunk.cell.method == "exact":
            assert len(list(tmp_path.glob("scores/**/*.parquet"))) == N_PAIRS // CHUNK
            return None
        pairs = [Pair(row, {"z": np.ones((1, 1, 2))}, group=row // 2) for row in range(chunk.start, chunk.stop)]
        write_chunk(tmp_path, chunk, pairs)
        return TaskDone(worker, TaskReport(assignment, len(pairs), 0, 0, 0, 0, 0.0, 0.0, 1))

    executor, view = ScriptedExecutor(outcome=outcome), View()
    result = run(job, tmp_path, executor, view, verify={"pairs": 4})
    assert {name: (stage.expected, stage.scored) for name, stage in result.stages.items()} == {
        "scoring": (N_PAIRS, N_PAIRS), "verification": (4, 4),
    }  # fmt: skip
    assert executor.started == [WorkerId("tiny", 0)], "its model is loaded once"
    assert [assignment.task[0].cell.method for _, assignment in executor.given] == ["atp"] * 3 + ["exact"]
    assert (executor.entered, executor.exited) == (1, 1)
    started = [(event["stage"], event["total"]) for event in events_of(tmp_path) if event["event"] == "stage_started"]
    assert started == [("scoring", N_PAIRS), ("verification", 4)]
    assert [(end.stage, end.done, end.total) for end in view.closed] == [("verification", N_PAIRS + 4, N_PAIRS + 4)]


def test_a_later_stage_that_goes_on_says_so_too(job: TinyJob, tmp_path: Path) -> None:
    def outcome(worker: WorkerId, assignment: Assignment) -> TaskDone | TaskUnreadable | None:
        [chunk] = assignment.task
        if chunk.cell.method == "exact":
            return TaskUnreadable(worker, assignment, "not now") if chunk.start and not again else None
        pairs = [Pair(row, {"z": np.ones((1, 1, 2))}) for row in range(chunk.start, chunk.stop)]
        write_chunk(tmp_path, chunk, pairs)
        return TaskDone(worker, TaskReport(assignment, len(pairs), 0, 0, 0, 0, 0.0, 0.0, 1))

    again, view = False, View()
    with pytest.raises(DatasetError, match="4 pairs could not be read"):
        run(job, tmp_path, ScriptedExecutor(outcome=outcome), verify={"pairs": 8})
    again = True
    run(job, tmp_path, ScriptedExecutor(outcome=outcome), view, verify={"pairs": 8})
    assert [note for note in view.notes if note.startswith("resuming")] == [
        "resuming scoring: 12 of 12 pairs are committed", "resuming verification: 4 of 8 pairs are committed",
    ]  # fmt: skip


def test_a_stage_that_cannot_begin_leaves_the_one_before_committed(job: TinyJob, tmp_path: Path) -> None:
    """Empty tables have no pair to sample: what is asked of the second stage is refused, and the first stays."""
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


def assert_ended_orderly(out: Path, executor: ScriptedExecutor, error: AttribBatchError, *, pairs: int) -> None:
    """The log and the record say how it ended, workers are ended, and the directory is free for the next driver."""
    assert executor.exited == executor.entered == 1
    ended = events_of(out)[-1]
    assert (ended["event"], ended["level"]) == ("execution_ended", "error")
    assert (ended["exit_code"], ended["message"], ended["pairs"]) == (error.exit_code, str(error), pairs)
    assert record_of(out)["pairs_scored"] == pairs
    assert not (out / "lease.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_and_the_same_command_goes_on(
    number: signal.Signals, job: TinyJob, tmp_path: Path
) -> None:
    def outcome(_worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[0] == CHUNK:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    executor, view = ScriptedExecutor(outcome=outcome), View()
    with pytest.raises(
        StoppedError, match=r"stopped with 4 of 12 pairs committed\. The same command goes on"
    ) as stopped:
        run(job, tmp_path, executor, view)
    assert stopped.value.exit_code == ExitCode.UNFINISHED
    assert_ended_orderly(tmp_path, executor, stopped.value, pairs=4)
    assert len(view.closed) == 1
    assert signal.getsignal(number) == before
    again = View()
    assert run(job, tmp_path, ScriptedExecutor(), again).scoring.scored == N_PAIRS
    assert again.notes[0].startswith("resuming scoring: ")


def test_tasks_in_hand_are_finished_while_there_is_grace_and_no_other_is_begun(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[0] == CHUNK:
            signal.raise_signal(signal.SIGINT)

    executor = ScriptedExecutor(outcome=outcome, grace_seconds=60.0)
    with pytest.raises(StoppedError, match="stopped with 8 of 12 pairs committed"):
        run(job, tmp_path, executor)
    assert [assignment.rows for _, assignment in executor.given] == [(0, 4), (4, 8)]
    [asked] = [event for event in events_of(tmp_path) if event["event"] == "stop_asked"]
    assert (asked["model"], asked["in_hand"]) == ("tiny", 1)


def test_a_signal_that_comes_when_everything_is_committed_changes_nothing(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[1] == N_PAIRS:
            signal.raise_signal(signal.SIGINT)

    result = run(job, tmp_path, ScriptedExecutor(outcome=outcome, grace_seconds=60.0))
    assert result.exit_code == ExitCode.OK


def test_a_second_interrupt_is_one_where_a_person_works_in_the_process(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, _assignment: Assignment) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    executor = ScriptedExecutor(outcome=outcome)
    with pytest.raises(KeyboardInterrupt):
        run_stages(opened(job, tmp_path), executor, View(), keep_process=True)
    assert executor.exited == 1
    ended = events_of(tmp_path)[-1]
    assert (ended["exit_code"], ended["message"]) == (ExitCode.UNFINISHED, "KeyboardInterrupt")
    assert not (tmp_path / "lease.json").exists()


def test_a_driver_in_another_thread_leaves_signals_alone(job: TinyJob, tmp_path: Path) -> None:
    handlers: list[Any] = []
    results: list[RunResult] = []

    def outcome(_worker: WorkerId, _assignment: Assignment) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: results.append(run(job, tmp_path, ScriptedExecutor(outcome=outcome))))
    thread.start()
    thread.join()
    assert results[0].exit_code == ExitCode.OK
    assert set(handlers) == {before}


def test_a_driver_that_lost_its_lease_begins_nothing_more(
    job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    started = opened(job, tmp_path)
    other = replace(Holder.here("another"), host="elsewhere")

    def outcome(_worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[0] != CHUNK:
            return
        until = time.monotonic() + 60
        while time.monotonic() < until:
            # It may be written over once, by a renewal that had read the file before.
            (tmp_path / "lease.json").write_text(json.dumps(vars(other)))
            time.sleep(0.05)
            try:
                started.lease.check()
            except RunInterruptedError:
                return

    executor = ScriptedExecutor(outcome=outcome)
    with pytest.raises(RunInterruptedError, match="another driver has taken over") as ended:
        run_stages(started, executor, View())
    assert [assignment.rows for _, assignment in executor.given] == [(0, 4), (4, 8)]
    assert executor.exited == 1
    assert lease.read_holder(started.store) == other, "the other one's lease is left alone"
    last = events_of(tmp_path)[-1]
    assert (last["exit_code"], last["message"]) == (ExitCode.UNFINISHED, str(ended.value))
    assert record_of(tmp_path)["pairs_scored"] == 4


def test_output_that_cannot_be_written_any_more_does_not_make_the_request_wrong(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[0] == CHUNK:
            shutil.rmtree(tmp_path / "scores")
            (tmp_path / "scores").write_text("in the way")

    executor = ScriptedExecutor(outcome=outcome)
    with pytest.raises(RunInterruptedError, match="scores") as ended:
        run(job, tmp_path, executor)
    assert isinstance(ended.value.__cause__, OutputError)
    assert ended.value.exit_code == ExitCode.UNFINISHED
    assert_ended_orderly(tmp_path, executor, ended.value, pairs=4)


def test_a_request_that_proves_wrong_ends_the_run_with_its_own_exit_code(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, _assignment: Assignment) -> None:
        raise ModelError("the model has no such head")

    executor = ScriptedExecutor(outcome=outcome)
    with pytest.raises(ModelError) as ended:
        run(job, tmp_path, executor)
    assert_ended_orderly(tmp_path, executor, ended.value, pairs=0)
    assert events_of(tmp_path)[-1]["exit_code"] == ExitCode.BAD_REQUEST
    assert not list(tmp_path.glob("failures/**/*.parquet")), "no pair is charged with it"


def test_a_record_that_cannot_be_written_does_not_hide_how_the_run_ended(job: TinyJob, tmp_path: Path) -> None:
    (tmp_path / "executions").write_text("in the way")
    view = View()
    assert run(job, tmp_path, ScriptedExecutor(), view).exit_code == ExitCode.OK
    assert any("executions" in note for note in view.notes)


def test_a_lease_that_cannot_be_given_back_is_told_and_the_run_has_ended(job: TinyJob, tmp_path: Path) -> None:
    def outcome(_worker: WorkerId, assignment: Assignment) -> None:
        if assignment.rows[1] == N_PAIRS:
            (tmp_path / "lease.json").unlink()
            (tmp_path / "lease.json").mkdir()

    view = View()
    assert run(job, tmp_path, ScriptedExecutor(outcome=outcome), view).exit_code == ExitCode.OK
    [note] = [note for note in view.notes if "the lease could not be given back" in note]
    [released] = [event for event in events_of(tmp_path) if event["event"] == "lease_released"]
    assert (released["level"], released["message"]) == ("warning", note)


def test_a_run_that_goes_on_says_from_where(job: TinyJob, tmp_path: Path) -> None:
    first, second, third = View(), View(), View()
    with pytest.raises(DatasetError):
        run(job, tmp_path, ScriptedExecutor(outcome=unreadable_from(CHUNK)), first)
    run(job, tmp_path, ScriptedExecutor(), second)
    run(job, tmp_path, ScriptedExecutor(), third)
    assert first.notes[0] == "tiny: workers 1, chunks 3"
    assert second.notes[:2] == [
        "resuming scoring: 4 of 12 pairs are committed", "tiny: workers 1, chunks 2",
    ]  # fmt: skip
    assert third.notes == ["resuming scoring: 12 of 12 pairs are committed"]


def unreadable_from(row: int) -> Any:
    def outcome(worker: WorkerId, assignment: Assignment) -> TaskUnreadable | None:
        start, stop = assignment.rows
        unreadable = TaskUnreadable(worker, assignment, f"rows {start} to {stop - 1} cannot be read")
        return unreadable if start >= row else None

    return outcome


def test_few_of_many_messages_are_shown_at_the_end_and_all_pairs_counted(job: TinyJob, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as ended:
        run(job, tmp_path, ScriptedExecutor(outcome=unreadable_from(0)), chunk_pairs=2)
    assert str(ended.value).splitlines() == [
        *(f"rows {start} to {start + 1} cannot be read" for start in (0, 2, 4)),
        "(and 3 more like these)",
        "12 pairs could not be read; all others are committed.",
    ]


def test_doubtful_pairs_are_counted_at_the_end(job: TinyJob, tmp_path: Path) -> None:
    view = View()
    run(job, tmp_path, ScriptedExecutor(warnings={"role_hidden": 2}), view)
    assert view.notes[-1] == (
        "warning: 6 pairs of random: role_hidden; `attrib-batch pairs validate` says which and why"
    )
    assert record_of(tmp_path)["warnings"] == {"random": {"role_hidden": 6}}
