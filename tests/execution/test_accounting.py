"""What the screen and the record of an execution say of several models, by a clock that the test sets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from attrib_batch.execution.accounting import Tally
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.task import LoadReport, TaskReport
from attrib_batch.observe.progress import describe
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk
from tests.support.faults import METRIC, faulty_environment
from tests.support.jobs import TinyJob
from tests.support.shared_ray import SharedRay

if TYPE_CHECKING:
    from pathlib import Path

READY = LoadReport(peak_bytes=1, parameters=1, seconds=1.0)


def report(n_pairs: int, model_seconds: float = 0.0, *, n_failed: int = 0) -> TaskReport:
    return TaskReport(
        Assignment((Chunk(Cell("m", "d", "atp"), 0, n_pairs),)), n_scored=n_pairs - n_failed, n_failed=n_failed,
        score_rows=0, score_bytes=0, tokens=0, seconds=model_seconds, model_seconds=model_seconds, peak_bytes=1,
    )  # fmt: skip


@dataclass
class Clocked:
    """A tally, and the clock that it looks at."""

    now: float
    tally: Tally

    @classmethod
    def of(cls, earlier: int = 0, **waiting: int) -> Clocked:
        clocked = cls(100.0, Tally(0, {}))
        clocked.tally = Tally(earlier, waiting, clock=lambda: clocked.now)
        return clocked

    def ready(self, at: float, model: str, worker: int = 0) -> None:
        self.now = at
        self.tally.worker_ready(model, worker, READY)

    def commit(self, at: float, model: str, n_pairs: int, *, worker: int = 0, **fields: Any) -> None:
        self.now = at
        self.tally.add(model, worker, report(n_pairs, **fields))

    def end(self, at: float, model: str) -> None:
        self.now = at
        self.tally.model_ended(model)


def one_after_the_other() -> Clocked:
    """100 pairs in 10 s by worker 0 of the first model; then, after 30 s, worker 0 of the second does 40 in 2 s."""
    run = Clocked.of(earlier=60, first=100, second=100)
    run.ready(110, "first")
    run.commit(115, "first", 50, model_seconds=4.5)
    run.commit(120, "first", 50, model_seconds=4.5, n_failed=10)
    run.end(121, "first")
    run.ready(150, "second")
    run.commit(152, "second", 40, model_seconds=1.8)
    return run


def test_the_second_model_has_its_own_speed_and_share() -> None:
    run = one_after_the_other()
    assert run.tally.speeds.of == {"first": pytest.approx(10.0), "second": pytest.approx(20.0)}
    assert run.tally.seconds_left == pytest.approx(60 / 20)
    assert describe(run.tally.snapshot()) == "200 of 260 pairs, 10 failed, 20.0 pairs/s, 3 s left"
    assert run.tally.model_share == pytest.approx((9 + 1.8) / (10 + 2))


def test_the_record_leaves_out_the_time_in_which_nobody_was_ready() -> None:
    run = one_after_the_other()
    run.commit(155, "second", 60)
    run.end(170, "second")
    run.now = 900
    assert run.tally.pairs_per_second == pytest.approx(200 / (10 + 5))
    assert describe(run.tally.snapshot(at_end=True)) == "260 of 260 pairs, 10 failed, 13.3 pairs/s"


def test_while_the_next_model_loads_no_speed_is_shown_and_the_time_left_is_that_of_the_others_speed() -> None:
    run = one_after_the_other()
    run.tally = Tally(0, {"first": 100, "second": 100}, clock=lambda: run.now)
    assert describe(run.tally.snapshot()) == "0 of 200 pairs"
    run.ready(110, "first")
    assert describe(run.tally.snapshot()) == "0 of 200 pairs"
    run.commit(120, "first", 100)
    run.end(120, "first")
    run.now = 140
    assert describe(run.tally.snapshot()) == "100 of 200 pairs, 10 s left"


def test_models_side_by_side_add_up_and_share_their_time() -> None:
    run = Clocked.of(first=100, second=100)
    run.ready(100, "first")
    run.ready(105, "second")
    run.commit(110, "first", 50, model_seconds=9.0)
    run.commit(110, "second", 50, model_seconds=5.0)
    assert run.tally.speeds.now == pytest.approx(50 / 10 + 50 / 5)
    assert run.tally.seconds_left == pytest.approx(50 / 5), "the slower one is the last to end"
    assert run.tally.pairs_per_second == pytest.approx(100 / 10)
    assert run.tally.model_share == pytest.approx(14 / 15, abs=1e-4)


def test_a_second_worker_counts_from_its_own_being_ready() -> None:
    run = Clocked.of(first=100)
    run.ready(100, "first")
    run.commit(110, "first", 50, model_seconds=10.0)
    run.ready(110, "first", worker=1)
    run.commit(120, "first", 50, worker=1, model_seconds=10.0)
    assert run.tally.model_share == 1.0
    assert run.tally.pairs_per_second == pytest.approx(100 / 20)


def test_what_is_given_up_or_cannot_be_read_is_not_waited_for() -> None:
    run = Clocked.of(first=100, second=100)
    run.ready(100, "first")
    run.commit(110, "first", 40)
    run.tally.given_up("first", 20)
    assert run.tally.speeds.of["first"] == pytest.approx(60 / 10)
    assert (run.tally.done, run.tally.failed) == (60, 20)
    run.end(110, "first")  # the other 40 cannot be read
    assert run.tally.seconds_left == pytest.approx(100 / 6)


def test_a_run_of_two_models_records_figures_that_can_be(shared_ray: SharedRay, tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=40)
    # Every micro-batch takes its time, and the first model has 40 of them where the second has 10.
    budgets = {"first": 1, "second": 4096}
    models = [
        {"id": str(job.model), "name": name, "prepend_bos": False, "batch_tokens": tokens}
        for name, tokens in budgets.items()
    ]
    path = job.write(models=models, methods=[{"id": "atp", "metric": METRIC}])
    slow = faulty_environment(shared_ray.packages, slow=0.02)
    ended = shared_ray.run("run", path, "--out", tmp_path / "out", env=slow)
    assert ended.code == 0, ended.said
    [record] = [json.loads(path.read_text()) for path in (tmp_path / "out/executions").glob("*.json")]
    [log] = (tmp_path / "out/logs").glob("*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["model"] for line in events if line["event"] == "model_ended"} == {"first", "second"}
    spent = sum(line["model_seconds"] for line in events if line["event"] == "task_committed")
    assert 0 < record["model_share"] <= 1
    # Each model's worker was at work for at least the time that it spent in the model; the two side by side.
    assert 0 < record["pairs_per_second"] <= 2 * record["pairs_scored"] / spent
    assert f"80 of 80 pairs, {record['pairs_per_second']:.1f} pairs/s" in ended.said


def test_doubtful_pairs_count_once_however_often_they_are_scored() -> None:
    """Two chunks of one table with two methods and two models, the second of which knows more words."""
    run = Clocked.of(one=8, two=8)
    for model, unknown in (("one", 3), ("two", 1)):
        run.ready(100, model)
        for method in ("atp", "exact"):
            for start in (0, 2):
                task = (Chunk(Cell(model, "d", method), start, start + 2),)
                warnings = {"unknown_token": unknown, "role_hidden": 1}
                run.tally.add(model, 0, replace(report(2), assignment=Assignment(task), warnings=warnings))
    assert run.tally.warnings == {"d": {"unknown_token": 6, "role_hidden": 2}}
    assert Clocked.of(one=1).tally.warnings == {}
