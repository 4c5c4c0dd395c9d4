"""Workers that wait for room which others have: however long, they are neither hung nor failed to start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.execution.ray import capacity
from attrib_batch.execution.ray.capacity import UNPLACED_SECONDS, Queue
from attrib_batch.execution.scheduling.deadlines import Deadlines
from attrib_batch.execution.scheduling.scheduler import MAX_FAILED_STARTS, End, Give, Scheduler, Start
from attrib_batch.spec import Cell, WorkersSpec
from attrib_batch.tables import Chunk
from tests.support.jobs import TinyJob, environment, read_scores, run_script, with_forked_workers

if TYPE_CHECKING:
    from pathlib import Path

SHORTEST, LONGEST = 10.0, 1000.0
FOREVER = 100 * LONGEST


def scheduler_of(n_tasks: int, *, n_workers: int = 1) -> Scheduler:
    cell = Cell("model", "dataset", "method")
    tasks = [(Chunk(cell, row, row + 1),) for row in range(n_tasks)]
    return Scheduler(tasks, n_workers, Deadlines(SHORTEST, LONGEST))


def test_a_worker_that_waits_for_room_is_not_hung() -> None:
    scheduler = scheduler_of(1)
    assert list(scheduler.decide(0.0)) == [Start(0)]
    assert scheduler.n_unplaced == 1
    assert list(scheduler.decide(FOREVER)) == []
    scheduler.worker_placed(0, FOREVER)
    assert scheduler.n_unplaced == 0
    assert list(scheduler.decide(FOREVER + LONGEST - 1)) == []
    scheduler.worker_ready(0, FOREVER + LONGEST - 1)
    assert [type(action) for action in scheduler.decide(FOREVER + LONGEST)] == [Give]


def test_loading_has_a_deadline_from_the_moment_a_worker_is_placed() -> None:
    scheduler, now = scheduler_of(1), FOREVER
    list(scheduler.decide(0.0))
    for worker in range(MAX_FAILED_STARTS):
        assert scheduler.stopped is None
        scheduler.worker_placed(worker, now)
        scheduler.worker_placed(worker, now + LONGEST - 1)  # told twice, it counts once
        now += LONGEST
        assert End(worker, f"it finished nothing for {LONGEST:.0f} s and was taken for hung") in scheduler.decide(now)
    assert "3 starts of 1 worker failed" in str(scheduler.stopped)


def test_the_others_do_the_work_meanwhile() -> None:
    scheduler = scheduler_of(3, n_workers=2)
    list(scheduler.decide(0.0))
    scheduler.worker_ready(1, 0.0)
    for now in (0.0, FOREVER, 2 * FOREVER):
        [give] = [action for action in scheduler.decide(now) if isinstance(action, Give)]
        assert give.worker == 1
        scheduler.done(1, give.assignment, now)
    assert scheduler.finished
    assert scheduler.n_unplaced == 1


def test_a_stop_does_not_wait_for_room() -> None:
    scheduler = scheduler_of(1)
    list(scheduler.decide(0.0))
    scheduler.stop()
    assert scheduler.finished


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["place", "load", "die", "wait"])), max_size=40))
def test_only_workers_that_run_are_ended_and_only_deaths_count(steps: list[tuple[int, str]]) -> None:
    scheduler, now = scheduler_of(9, n_workers=4), 0.0
    waits, loads = set[int](), set[int]()

    def decide() -> None:
        for action in scheduler.decide(now):
            if isinstance(action, Start):
                waits.add(action.worker)
            elif isinstance(action, End):
                assert action.worker not in waits
                loads.discard(action.worker)

    decide()
    for index, what in steps:
        among = sorted(loads if what == "load" else waits)
        if what == "wait":
            now += LONGEST
        elif among:
            worker = among[index % len(among)]
            if what == "place":
                waits.remove(worker)
                loads.add(worker)
                scheduler.worker_placed(worker, now)
            elif what == "load":
                loads.remove(worker)
                scheduler.worker_ready(worker, now)
            else:
                waits.remove(worker)
                scheduler.worker_failed_to_start(worker, "gone", now)
        decide()
        assert scheduler.n_unplaced == len(waits)
    if not {"place", "die"} & {what for _, what in steps}:
        assert scheduler.stopped is None


def test_workers_that_wait_are_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(capacity.time, "monotonic", lambda: now)
    queue = Queue(WorkersSpec.model_validate({"cpus": 2, "memory": "8GB"}), free=lambda: [{"memory": 3e9}])
    assert queue.announce(2) is None
    now += UNPLACED_SECONDS
    assert queue.announce(2) == (
        "2 workers wait for room: an actor asks for 2 CPUs, 8 GB of memory, and free in the whole cluster are 0 CPUs, "
        "3 GB of memory. They start when there is room."
    )
    now += UNPLACED_SECONDS
    assert queue.announce(1) is None
    assert queue.announce(0) is None
    assert queue.announce(1) is None  # it has only begun to wait
    now += UNPLACED_SECONDS
    assert str(queue.announce(1)).startswith("1 workers wait for room")


PACKED = {"kind": "sharded", "shards": 2, "cpus": 2}


@pytest.mark.parametrize(
    ("asked", "count", "free", "says"),
    [
        ({}, 1, [{"CPU": 1.0}], "1 workers have not started, though there is room: an actor asks for 1 CPUs, and free"),
        ({}, 3, [{"CPU": 1.0}, {}], "free in the whole cluster are 1 CPUs: there is room for 1. They start when"),
        ({"cpus": 2}, 1, [{"CPU": 1.0}] * 2, "are 2 CPUs, but in pieces on several nodes: no node has enough of it."),
        ({"gpus": 1}, 1, [{"CPU": 9.0}, {"GPU": 1.0}], "are 9 CPUs, 1 GPUs, but in pieces on several nodes"),
        (PACKED, 1, [{"CPU": 3.0}], "a gang of 2 shards asks for 4 CPUs on one node, and free in the"),
        (PACKED, 1, [{"CPU": 2.0}] * 2, "on one node, and free in the whole cluster are 4 CPUs, but in pieces"),
        (PACKED | {"placement": "spread"}, 1, [{"CPU": 2.0}], "each of a gang's 2 shards asks for 2 CPUs, and free in"),
        (PACKED | {"placement": "spread"}, 1, [{"CPU": 2.0}] * 2, "1 workers have not started, though there is room"),
        ({}, 1, [], "wait for room: an actor asks for 1 CPUs, and free in the whole cluster are 0 CPUs. They"),
    ],
)  # fmt: skip
def test_what_is_told_of_workers_that_wait_is_true(
    asked: dict[str, Any], count: int, free: list[dict[str, float]], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(capacity.time, "monotonic", lambda: now)
    queue = Queue(WorkersSpec.model_validate(asked), free=lambda: free)
    queue.announce(count)
    now += UNPLACED_SECONDS
    assert says in str(queue.announce(count))


RUN = """
import sys, tempfile
from pathlib import Path
from types import SimpleNamespace

import ray

import attrib_batch as ab
from attrib_batch.execution.ray import capacity
from attrib_batch.execution import loop

LATER = 5  # looks at a run that waits before its clock jumps, with each of so many, and before there is room


class Other:
    def work(self):
        return True


class View:
    \"\"\"Time passes, and the other user ends, while the run waits.\"\"\"

    def __init__(self, other):
        self.other, self.looks, self.late = other, 0, 0.0

    def note(self, message):
        print(message)

    def update(self, snapshot):
        self.looks += 1
        if LATER <= self.looks < 2 * LATER:
            self.late += 1e6
        if self.looks == 2 * LATER:
            ray.kill(self.other)

    def close(self, snapshot):
        pass


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: the paths of sockets have to be
        ray.init(
            address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False, num_cpus=1,
            object_store_memory=100 << 20, _node_ip_address="127.0.0.1", _temp_dir=folder,
        )
        other = ray.remote(Other).options(num_cpus=1).remote()
        ray.get(other.work.remote())
        view, clock = View(other), loop.time.monotonic
        # The clock of deadlines alone: Ray and the lease keep their own.
        loop.time = capacity.time = SimpleNamespace(monotonic=lambda: clock() + view.late)
        result = ab.load_job(sys.argv[1]).run(sys.argv[2], executor=ab.RayExecutor(), progress=view).result
        ray.shutdown()
    sys.exit(result.exit_code)
"""


@pytest.mark.slow
def test_a_run_waits_until_another_user_of_the_cluster_is_done(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=8)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    workers: dict[str, Any] = {"count": 1, "cpus": 1}
    path = job.write(models=[{"id": str(job.model), "name": "tiny", "prepend_bos": False, "workers": workers}])
    env = {**environment(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ended = run_script(script, path, tmp_path / "out", env=with_forked_workers(env), seconds=200)
    assert ended.code == 0, ended.said
    assert "1 workers wait for room: an actor asks for 1 CPUs, and free in the whole cluster are 0 CPUs" in ended.output
    assert "could not start" not in ended.output
    assert "a worker was lost" not in ended.output
    assert read_scores(tmp_path / "out")["pair_id"].n_unique() == 8
