"""Whose fault an exception is: that of the pair that raises alone, or that of none where all raise the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attrib_batch.attribution import metrics
from attrib_batch.attribution.batches import Size
from attrib_batch.attribution.engine import TokenBudget
from attrib_batch.attribution.metrics import AnswerSets, logit_diff, register_metric
from attrib_batch.errors import TaskError
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, load_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.support.jobs import TinyJob, read_table
from tests.support.worker_here import WorkerHere, replica_here

METRIC = "test-may-raise"
Fault = Callable[[Tensor, AnswerSets], None]
"""Raises what the metric is to raise, for these logits and answers."""


def task(start: int, stop: int) -> tuple[Chunk, ...]:
    return tuple(Chunk(Cell("tiny", "random", method), start, stop) for method in ("atp", "noise"))


def is_control(answers: AnswerSets) -> bool:
    """Whether they are those of the made-up pair: every other pair has four answers in all."""
    return answers.right.shape[-1] + answers.wrong.shape[-1] == 2


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=20)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
    """What the metric does beside its work; empty, it does nothing."""
    faults: list[Fault] = []

    def may_raise(logits: Tensor, clean_logits: Tensor, answers: AnswerSets) -> Tensor:
        for fault in faults:
            fault(logits, answers)
        return logit_diff(logits, clean_logits, answers)

    names: set[str] = set()
    monkeypatch.setattr(metrics, "_loaded", dict(metrics._loaded))
    monkeypatch.setattr(metrics, "registered_names", names)
    monkeypatch.setattr("attrib_batch.spec.registries.metrics.registered_names", names)
    register_metric(METRIC, may_raise)
    return faults


@pytest.fixture
def worker(job: TinyJob, fault: list[Fault], tmp_path: Path) -> WorkerHere:
    methods = [{"id": "atp", "metric": METRIC}, {"id": "noise", "kind": "atp", "direction": "noise", "metric": METRIC}]
    fingerprints = {"random": PairTable.open(job.pairs).fingerprint()}
    worker = replica_here(load_spec(job.write(methods=methods)), Store(tmp_path / "out"), fingerprints)
    worker.load()
    return worker


def missing(logits: Tensor, answers: AnswerSets) -> None:
    raise KeyError("missing thing")


def counting(error: type[Exception], message: str) -> Fault:
    """A fault whose message is another every time, in its digits alone."""
    calls = iter(range(10**6))

    def fault(logits: Tensor, answers: AnswerSets) -> None:
        number = next(calls)
        raise error(f"{message} {number} at {id(logits) + number:#x}")

    return fault


def but_for_the_control(fault: Fault) -> Fault:
    return lambda logits, answers: None if is_control(answers) else fault(logits, answers)


def test_the_same_exception_for_all_pairs_commits_nothing(worker: WorkerHere, fault: list[Fault]) -> None:
    fault.append(missing)
    said = r"^rows 8 to 15 of random: all 8 pairs of atp ended in the same exception: KeyError: 'missing thing'$"
    with pytest.raises(TaskError, match=said):
        worker.score(Assignment(task(8, 16)))
    assert not worker.store.root.exists()
    fault.clear()
    assert worker.score(Assignment(task(8, 16))).n_scored == 2 * 8


@pytest.mark.parametrize("n_pairs", [2, 1])
def test_what_differs_in_digits_alone_is_the_same(worker: WorkerHere, fault: list[Fault], n_pairs: int) -> None:
    fault.append(counting(RuntimeError, "CUDA error in block"))
    with pytest.raises(TaskError, match="CUDA error in block"):
        worker.score(Assignment(task(8, 8 + n_pairs)))
    assert not worker.store.root.exists()


def test_what_the_made_up_pair_does_not_end_in_is_no_excuse_for_several_pairs(
    worker: WorkerHere, fault: list[Fault]
) -> None:
    fault.append(but_for_the_control(missing))
    with pytest.raises(TaskError, match="all 2 pairs"):
        worker.score(Assignment(task(8, 10)))


def failures(worker: WorkerHere) -> list[tuple[Any, ...]]:
    return (
        read_table(worker.store.root, "failures").select("pair_id", "method", "error").sort("pair_id", "method").rows()
    )


def test_exceptions_that_differ_are_the_pairs_own(worker: WorkerHere, fault: list[Fault]) -> None:
    seen: list[object] = []

    def fail(logits: Tensor, answers: AnswerSets) -> None:
        seen.append(logits)
        raise (KeyError if len(seen) % 2 else ValueError)("no")

    fault.append(but_for_the_control(fail))
    report = worker.score(Assignment(task(8, 10)))
    # Together they raise once; then each raises alone, one of them what the other does not.
    assert report.n_failed == 4
    assert [row[2] for row in failures(worker)] == ["scoring_error"] * 4


def test_one_pair_alone_is_blamed_where_a_made_up_pair_can_be_scored(worker: WorkerHere, fault: list[Fault]) -> None:
    fault.append(but_for_the_control(missing))
    report = worker.score(Assignment(task(8, 9)))
    assert (report.n_scored, report.n_failed) == (0, 2)
    assert failures(worker) == [(8, "atp", "scoring_error"), (8, "noise", "scoring_error")]


def test_one_pair_alone_is_not_blamed_for_what_a_made_up_pair_ends_in_as_well(
    worker: WorkerHere, fault: list[Fault]
) -> None:
    fault.append(missing)
    said = (
        "^rows 8 to 8 of random: 1 of 1 pairs of atp, and then one made up for .*exception: KeyError: 'missing thing'$"
    )
    with pytest.raises(TaskError, match=said):
        worker.score(Assignment(task(8, 9)))
    assert not worker.store.root.exists()


@pytest.mark.slow
def test_pairs_that_take_too_much_memory_are_blamed_and_memory_that_is_gone_is_not(
    worker: WorkerHere, fault: list[Fault]
) -> None:
    out_of_memory = counting(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate")
    fault.append(but_for_the_control(out_of_memory))
    assert worker.score(Assignment(task(8, 12))).n_failed == 2 * 4
    fault[:] = [out_of_memory]
    with pytest.raises(TaskError, match="OutOfMemoryError: CUDA out of memory"):
        worker.score(Assignment(task(12, 16)))
    assert set(read_table(worker.store.root, "failures")["pair_id"]) == {8, 9, 10, 11}


def test_one_pair_among_others_is_blamed_alone(worker: WorkerHere, fault: list[Fault]) -> None:
    bad = [True]

    def once_alone(logits: Tensor, answers: AnswerSets) -> None:
        if len(logits) > 1 or bad:
            if len(logits) == 1:
                bad.clear()
            raise KeyError("missing thing")

    fault.append(once_alone)
    report = worker.score(Assignment(task(8, 12)))
    assert (report.n_scored, report.n_failed) == (6, 2)


class SixPairs(TokenBudget):
    """Makes two micro-batches of 8 pairs: the second has 2."""

    def fits(self, size: Size) -> bool:
        return size.rows <= 2 * 6


def test_what_breaks_in_the_middle_of_a_task_is_no_pairs_fault(worker: WorkerHere, fault: list[Fault]) -> None:
    broken = []

    def from_the_second_batch_on(logits: Tensor, answers: AnswerSets) -> None:
        if broken or len(answers.right) == 2:
            broken.append(True)
            raise KeyError("missing thing")

    fault.append(from_the_second_batch_on)
    worker.worker._budget = SixPairs(4096)
    with pytest.raises(TaskError, match=r"2 of 8 pairs of atp, and then one that had been scored, ended in the same"):
        worker.score(Assignment(task(8, 16)))
    assert not worker.store.root.exists()


def test_a_probe_is_survived_whatever_is_raised(worker: WorkerHere, fault: list[Fault]) -> None:
    fault.append(missing)
    assert worker.score(Assignment(task(8, 16), probe=(8, 12))).n_failed == 0
    assert not worker.store.root.exists()
