"""The worker in this process: what is told of it, how it ends, and what its exceptions mean."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attrib_batch.attribution import engine
from attrib_batch.errors import DatasetError, ModelError, RequestError, RunInterruptedError, StorageError, TaskError
from attrib_batch.execution.events import (
    Event,
    TaskDone,
    TaskFailed,
    TaskUnreadable,
    WorkerFailedToStart,
    WorkerId,
    WorkerLost,
    WorkerPlaced,
    WorkerReady,
)
from attrib_batch.execution.executor import Demand
from attrib_batch.execution.local import LocalExecutor
from attrib_batch.execution.planning.stages import StageWork
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.replica import ReplicaWorker
from attrib_batch.models.in_memory import adopt_model
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, ModelSpec, parse_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.support.jobs import TinyJob, read_scores
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

SECONDS = 60.0
"""Longest time that anything here is waited for."""
WORKER = WorkerId("tiny", 0)
N_PAIRS = 8


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return adopt_model(ARCHITECTURES["llama"](), tiny_tokenizer())


@pytest.fixture
def executor(loaded: LoadedModel) -> Iterator[LocalExecutor]:
    with LocalExecutor({"tiny": loaded}) as executor:
        yield executor


@dataclass(frozen=True)
class Here:
    """An executor, a model and what its tasks have in common."""

    executor: LocalExecutor
    model: ModelSpec
    work: StageWork

    def start(self) -> list[Event]:
        """Start the worker, and return what is told until it is ready."""
        self.executor.start(WORKER, self.model, self.work)
        return [*self.hear(), *self.hear()]

    def give(self, start: int = 0, stop: int = 4) -> Assignment:
        assignment = Assignment((Chunk(Cell("tiny", "random", "atp"), start, stop),))
        self.executor.give(WORKER, assignment, self.work)
        return assignment

    def hear(self) -> list[Event]:
        return self.executor.wait(SECONDS)


@pytest.fixture
def here(executor: LocalExecutor, job: TinyJob, tmp_path: Path) -> Here:
    # A micro-batch is one pair.
    model = {"id": "in memory", "name": "tiny", "prepend_bos": False, "batch_tokens": 1, "workers": {"cpus": 7}}
    spec = parse_spec(job.data(models=[model]), source="job")
    return Here(
        executor, spec.models[0], StageWork(spec, Store(tmp_path), {"random": PairTable.open(job.pairs).fingerprint()})
    )


def test_events_come_in_order_and_tasks_are_committed(here: Here) -> None:
    placed, ready = here.start()
    assert placed == WorkerPlaced(WORKER)
    assert isinstance(ready, WorkerReady)
    assert ready.report.parameters > 0
    tasks = [here.give(0, 4), here.give(4, 8)]
    done = [event for _ in tasks for event in here.hear()]
    assert [type(event) for event in done] == [TaskDone, TaskDone]
    assert [event.report.assignment for event in done if isinstance(event, TaskDone)] == tasks
    assert set(read_scores(here.work.store.root)["pair_id"]) == set(range(N_PAIRS))
    assert here.executor.wait(0) == []


def test_a_model_in_memory_is_used_and_the_threads_of_the_process_are_left(here: Here) -> None:
    import torch

    threads = torch.get_num_threads()
    here.start()  # the id of the model leads nowhere
    assert torch.get_num_threads() == threads != here.model.workers.cpus


def test_a_model_that_is_not_given_is_loaded_and_one_that_is_not_there_ends_the_run(here: Here, job: TinyJob) -> None:
    with LocalExecutor() as executor:
        there = Here(executor, here.model.model_copy(update={"id": str(job.model)}), here.work)
        assert [type(event) for event in there.start()] == [WorkerPlaced, WorkerReady]
    with LocalExecutor() as executor, pytest.raises(ModelError, match="in memory"):
        Here(executor, here.model, here.work).start()


class Gate:
    """Scores as always, and stops before the second micro-batch until the test goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._score = engine.score_pairs
        self.reached = threading.Event()
        self.opened = threading.Event()
        monkeypatch.setattr(engine, "score_pairs", self._score_slowly)

    def _score_slowly(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, outcome in enumerate(self._score(*arguments, **options)):
            if number:
                self.reached.set()
                assert self.opened.wait(SECONDS)
            yield outcome


def test_pairs_in_hand_are_those_of_the_task_at_work(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    here.start()
    assert here.executor.pairs_in_hand() == 0
    here.give()
    assert gate.reached.wait(SECONDS)
    assert here.executor.pairs_in_hand() == 1
    gate.opened.set()
    [done] = here.hear()
    assert isinstance(done, TaskDone)
    assert done.report.n_scored == 4
    assert here.executor.pairs_in_hand() == 0, "they are committed"


@pytest.mark.parametrize("leave", [False, True], ids=["end", "exit"])
def test_a_worker_that_ends_leaves_its_task_between_two_micro_batches(
    leave: bool, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    here.start()
    here.give()
    here.give(4, 8)
    assert gate.reached.wait(SECONDS)
    # The gate opens once the worker knows that it is to end, which `end` then waits for.
    thread = here.executor._threads[WORKER]
    threading.Thread(target=lambda: thread._stopped.wait(SECONDS) and gate.opened.set()).start()
    if leave:
        here.executor.__exit__()
    else:
        here.executor.end(WORKER)
    assert not thread._thread.is_alive()
    assert list(here.work.store.root.rglob("*.parquet")) == []
    assert here.executor.wait(0) == [], "nothing more is heard of it"
    assert here.executor.pairs_in_hand() == 0


def test_what_a_worker_that_was_ended_had_reported_is_dropped(here: Here) -> None:
    here.executor.start(WORKER, here.model, here.work)
    here.executor.end(WORKER)
    assert [here.executor.wait(0) for _ in range(3)] == [[], [], []]


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: object) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (DatasetError("rows 0 to 3 cannot be read"), TaskUnreadable, "rows 0 to 3 cannot be read"),
        (TaskError("all 4 pairs ended"), TaskFailed, "all 4 pairs ended"),
        (KeyError("x"), WorkerLost, "KeyError: 'x'"),
        (SystemExit(3), WorkerLost, "SystemExit: 3"),
    ],
    ids=["dataset", "task", "any", "exit"],
)
def test_an_exception_in_a_task_is_an_event(
    error: BaseException, kind: type[Event], says: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.start()
    monkeypatch.setattr(ReplicaWorker, "score", raising(error))
    here.give()
    [event] = here.hear()
    assert type(event) is kind
    assert event.message == says  # type: ignore[union-attr]
    if kind is not TaskUnreadable:
        with pytest.raises(KeyError):  # it has been ended
            here.give()
        return
    monkeypatch.undo()
    here.give()
    assert [type(event) for event in here.hear()] == [TaskDone], "it is well, and goes on"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ModelError("no such head"), ModelError),
        (StorageError("the store gives no answer"), RunInterruptedError),
        (RunInterruptedError("the server gives no answer"), RunInterruptedError),
    ],
)
def test_what_ends_the_run_is_raised_to_who_waits(
    error: Exception, raised: type[Exception], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.start()
    monkeypatch.setattr(ReplicaWorker, "score", raising(error))
    here.give()
    with pytest.raises(raised, match=str(error)):
        here.hear()


def test_a_worker_that_raises_while_it_loads_has_failed_to_start(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplicaWorker, "load", raising(MemoryError("no room")))
    assert here.start() == [WorkerPlaced(WORKER), WorkerFailedToStart(WORKER, "MemoryError: no room")]
    monkeypatch.undo()
    # Another may start in its place.
    assert [type(event) for event in here.start()] == [WorkerPlaced, WorkerReady]


def demands(*kinds: str) -> Sequence[Demand]:
    def model(number: int, kind: str) -> ModelSpec:
        shards = {"shards": 2} if kind == "sharded" else {}
        return ModelSpec.model_validate(
            {"id": "x", "name": f"m{number}", "prepend_bos": False, "workers": {"kind": kind, "count": 3, **shards}}
        )

    return [Demand(model(number, kind), 5) for number, kind in enumerate(kinds)]


def test_the_first_model_with_open_tasks_has_the_worker() -> None:
    executor = LocalExecutor()
    assert executor.allot(demands("replica", "replica", "ndif")) == {"m0": 1, "m1": 0, "m2": 0}
    assert executor.allot([]) == {}


def test_shards_are_refused() -> None:
    with pytest.raises(RequestError, match=r"model 'm1' is split into shards.* run the job with Ray"):
        LocalExecutor().allot(demands("replica", "sharded"))
