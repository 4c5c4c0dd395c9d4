"""What the answers of actors mean, by Ray's own exceptions, without a cluster: only its references are made up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from attrib_batch.errors import (
    DatasetError,
    ModelError,
    RequestError,
    ShardsDisagreeError,
    ShardsOutOfMemoryError,
    TaskError,
)
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
from attrib_batch.execution.planning.stages import StageWork
from attrib_batch.execution.ray import executor as module
from attrib_batch.execution.ray.executor import RayExecutor
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.task import LoadReport, TaskReport
from attrib_batch.spec import Cell, ModelSpec, SweepSpec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk

GB = 10**9
ONE, TWO = WorkerId("tiny", 0), WorkerId("tiny", 1)
TASK = Assignment((Chunk(Cell("tiny", "random", "atp"), 0, 4),))
LOADED = LoadReport(1, 2, 3.0)
DONE = TaskReport(TASK, 4, 0, 1, 1, 1, 1.0, 1.0, 1)
SPEC = SweepSpec.model_validate(
    {
        "name": "job",
        "models": [{"id": "x", "name": "tiny", "prepend_bos": False}],
        "datasets": [{"id": "random", "path": "x.parquet"}],
        "methods": [{"id": "atp"}],
    }
)


@dataclass(eq=False)
class Reference:
    """What an actor will answer, once a test says so."""

    answers: bool = False
    value: Any = None
    error: BaseException | None = None

    def answer(self, value: Any = None) -> None:
        self.answers, self.value = True, value

    def raises(self, error: BaseException) -> None:
        self.answers, self.error = True, error


@dataclass
class MadeUpGang:
    """Actors whose answers a test decides."""

    size: int
    asked: list[list[Reference]] = field(default_factory=list)
    ended: int = 0

    def _ask(self) -> list[Any]:
        self.asked.append([Reference() for _ in range(self.size)])
        return list(self.asked[-1])

    def placed(self) -> list[Any]:
        return self._ask()

    def load(self) -> list[Any]:
        return self._ask()

    def score(self, _assignment: Assignment, _work: StageWork) -> list[Any]:
        return self._ask()

    def end(self) -> None:
        self.ended += 1


class HeadThere:
    """A head that is not lost, and is asked at once."""

    lost = False

    def ask(self, call: Any) -> Any:
        return call()


@dataclass
class Cluster:
    """An executor, and the gangs that it started."""

    executor: RayExecutor
    work: StageWork
    size: int = 1
    gangs: list[MadeUpGang] = field(default_factory=list)
    ran_out: list[int] = field(default_factory=list)
    """What each of them was told of gangs before it."""

    def start(self, worker: WorkerId = ONE) -> MadeUpGang:
        self.executor.start(worker, SPEC.models[0], self.work)
        return self.gangs[-1]

    def ready(self, worker: WorkerId = ONE) -> MadeUpGang:
        """Start a worker, and have it load."""
        gang = self.start(worker)
        for value in (None, LOADED):
            for reference in gang.asked[-1]:
                reference.answer(value)
            self.hear()
        return gang

    def give(self, worker: WorkerId = ONE) -> list[Reference]:
        self.executor.give(worker, TASK, self.work)
        return self.executor._gangs[worker].asked[-1]  # type: ignore[attr-defined]

    def hear(self) -> list[Event]:
        """Return all that is told until no reference has an answer."""
        told: list[Event] = []
        while any(reference.answers for reference in self.executor._calls):
            told += self.executor.wait(0)
        return told


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Cluster]:
    executor = RayExecutor()
    executor._head = HeadThere()  # type: ignore[assignment]
    made = Cluster(executor, StageWork(SPEC, Store(tmp_path), {}))

    def start_gang(_model: ModelSpec, _methods: object, *, ran_out: int) -> MadeUpGang:
        made.ran_out.append(ran_out)
        made.gangs.append(MadeUpGang(made.size))
        return made.gangs[-1]

    def wait(references: list[Reference], **_: Any) -> tuple[list[Reference], list[Reference]]:
        first = [reference for reference in references if reference.answers][:1]
        return first, [reference for reference in references if reference not in first]

    def get(reference: Reference) -> Any:
        assert reference.answers, "Ray would wait for it"
        if reference.error is not None:
            raise reference.error
        return reference.value

    monkeypatch.setattr(module, "start_gang", start_gang)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    # What is counted for Prometheus is tested on a real Ray.
    monkeypatch.setattr(module.RunMetrics, "__init__", lambda *_: None)
    monkeypatch.setattr(module.RunMetrics, "committed", lambda *_: None)
    yield made
    assert not ray.is_initialized()


def own(cause: Exception) -> RayTaskError:
    """Return what Ray raises for an exception of the worker's own."""
    return RayTaskError("score", "a traceback", cause)


def test_a_worker_is_placed_then_loads_then_scores(cluster: Cluster) -> None:
    gang = cluster.start()
    assert cluster.executor.wait(0) == []
    gang.asked[0][0].answer()
    assert cluster.hear() == [WorkerPlaced(ONE)]
    gang.asked[1][0].answer(LOADED)
    assert cluster.hear() == [WorkerReady(ONE, LOADED)]
    [reference] = cluster.give()
    reference.answer(DONE)
    assert cluster.hear() == [TaskDone(ONE, DONE)]
    assert not cluster.executor._calls


def test_a_gang_has_answered_when_all_of_it_has_and_says_what_its_first_says(cluster: Cluster) -> None:
    cluster.size = 3
    gang = cluster.start()
    for number, reference in enumerate(gang.asked[0]):
        assert cluster.hear() == []
        reference.answer(number)
    assert cluster.hear() == [WorkerPlaced(ONE)]
    for number, reference in enumerate(gang.asked[1]):
        reference.answer(LoadReport(number, number, 0.0))
    assert cluster.hear() == [WorkerReady(ONE, LoadReport(0, 0, 0.0))]


@pytest.mark.parametrize(
    ("cause", "event"),
    [
        (TaskError("all pairs ended"), TaskFailed(ONE, TASK, "all pairs ended")),
        (KeyError("x"), WorkerLost(ONE, "KeyError: 'x'")),
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_a_worker_whose_task_raised_is_ended(size: int, cause: Exception, event: Event, cluster: Cluster) -> None:
    cluster.size = size
    gang = cluster.ready()
    cluster.give()[-1].raises(own(cause))
    assert cluster.hear() == [event]
    assert gang.ended == 1
    assert not cluster.executor._calls, "what it had in hand besides is not waited for"


def test_a_gang_that_ran_out_of_memory_is_replaced_by_a_more_careful_one(cluster: Cluster) -> None:
    cluster.size = 2
    for error in (ShardsDisagreeError("apart"), ShardsOutOfMemoryError("full"), ShardsOutOfMemoryError("full again")):
        cluster.ready()
        cluster.give()[1].raises(own(error))
        assert cluster.hear() == [WorkerLost(ONE, str(error))]
    cluster.ready()
    assert cluster.ran_out == [0, 0, 1, 2]


def test_a_worker_that_cannot_read_its_pairs_goes_on(cluster: Cluster) -> None:
    gang = cluster.ready()
    cluster.give()[0].raises(own(DatasetError("rows are gone")))
    assert cluster.hear() == [TaskUnreadable(ONE, TASK, "rows are gone")]
    assert gang.ended == 0
    cluster.give()[0].answer(DONE)
    assert cluster.hear() == [TaskDone(ONE, DONE)]


def test_a_gang_of_which_one_cannot_read_is_replaced_since_the_others_wait_for_it(cluster: Cluster) -> None:
    cluster.size = 2
    gang = cluster.ready()
    cluster.give()[1].raises(own(DatasetError("rows are gone")))
    assert cluster.hear() == [TaskUnreadable(ONE, TASK, "rows are gone"), WorkerLost(ONE, "rows are gone")]
    assert gang.ended == 1


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("too much\n memory"), RayError("out of reach")])
def test_a_worker_that_is_lost_is_ended_and_the_message_is_one_line(error: RayError, cluster: Cluster) -> None:
    gang = cluster.ready()
    first, second = cluster.give(), cluster.give()
    first[0].raises(error)
    second[0].answer(DONE)
    [event] = cluster.hear()
    assert isinstance(event, WorkerLost)
    assert event.message.startswith(f"{type(error).__name__}: ")
    assert "\n" not in event.message
    assert gang.ended == 1


@pytest.mark.parametrize("loads", [False, True])
def test_a_worker_that_is_lost_before_it_is_ready_has_failed_to_start(loads: bool, cluster: Cluster) -> None:
    gang = cluster.start()
    if loads:
        gang.asked[0][0].answer()
        cluster.hear()
    gang.asked[-1][0].raises(ActorDiedError())
    [event] = cluster.hear()
    assert isinstance(event, WorkerFailedToStart)
    assert gang.ended == 1


@pytest.mark.parametrize("cause", [ModelError("no such model"), RequestError("not so")])
def test_a_model_that_cannot_be_had_ends_the_run(cause: Exception, cluster: Cluster) -> None:
    gang = cluster.start()
    gang.asked[0][0].answer()
    cluster.hear()
    gang.asked[1][0].raises(own(cause))
    with pytest.raises(type(cause), match=str(cause)):
        cluster.hear()


def test_nothing_more_is_heard_of_a_worker_that_was_ended(cluster: Cluster) -> None:
    gang, other = cluster.ready(ONE), cluster.ready(TWO)
    [reference] = cluster.give(ONE)
    [kept] = cluster.give(TWO)
    cluster.executor.end(ONE)
    assert (gang.ended, other.ended) == (1, 0)
    reference.answer(DONE)
    kept.answer(DONE)
    assert cluster.hear() == [TaskDone(TWO, DONE)]


@pytest.mark.parametrize(
    ("grows", "shares"), [(False, {"m0": 2, "m1": 1}), (True, {"m0": 3, "m1": 3})], ids=["fixed", "autoscaler"]
)
def test_models_side_by_side_share_what_the_nodes_have(
    grows: bool, shares: dict[str, int], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "alive_nodes", lambda: [{"CPU": 3, "memory": 8 * GB}])
    monkeypatch.setattr(module, "cluster_grows", lambda: grows)
    monkeypatch.setattr(module, "check_capacity", lambda *_: None)
    models = [
        ModelSpec.model_validate({"id": "x", "name": f"m{number}", "prepend_bos": False, "workers": {"count": 3}})
        for number in range(2)
    ]
    executor = cluster.executor
    assert executor.allot([Demand(model, 9) for model in models]) == shares
    assert executor.allot([Demand(models[0], 9)]) == {"m0": 3}, "alone it has what it asks for"
