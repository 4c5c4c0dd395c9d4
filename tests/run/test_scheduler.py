"""The scheduler without Ray: every chunk ends once, budgets hold, whatever the order of events."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.run.plan import CellPlan, Task, plan_cells, tasks_by_model
from attrib_batch.run.scheduler import Scheduler
from attrib_batch.schema import Cell, Chunk
from attrib_batch.spec import parse_job

CELL = Cell("model", "dataset", "method")


def task(index: int) -> Task:
    """A task of one chunk of one pair."""
    return (Chunk(CELL, index, index + 1),)


@given(n_pairs=st.integers(1, 500), chunk_pairs=st.integers(1, 60))
def test_chunks_cover_every_pair_once_in_order(n_pairs: int, chunk_pairs: int) -> None:
    plan = CellPlan(CELL, n_pairs, chunk_pairs)
    chunks = list(plan.chunks())
    assert len(chunks) == plan.n_chunks
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(n_pairs))
    assert max(chunk.n_pairs for chunk in chunks) <= chunk_pairs


@given(
    n_chunks=st.integers(0, 30),
    n_workers=st.integers(1, 4),
    depth=st.integers(1, 3),
    loss=st.floats(0, 0.9),
    seed=st.integers(0, 999),
)
def test_every_chunk_ends_exactly_once(n_chunks: int, n_workers: int, depth: int, loss: float, seed: int) -> None:
    chunks = [task(index) for index in range(n_chunks)]
    scheduler, source = Scheduler(chunks, depth=depth), random.Random(seed)
    in_hand: dict[int, list[Task]] = {}
    tries: dict[Task, int] = {}
    ended: list[Task] = []
    next_worker = 0
    while not scheduler.finished:
        while len(in_hand) < n_workers:
            scheduler.worker_ready(next_worker)
            in_hand[next_worker] = []
            next_worker += 1
        while (assigned := scheduler.assign()) is not None:
            worker, chunk = assigned
            in_hand[worker].append(chunk)
            tries[chunk] = tries.get(chunk, 0) + 1
            assert len(in_hand[worker]) <= depth
            assert len(in_hand[worker]) == 1 or all(tries[held] == 1 for held in in_hand[worker])
        worker = source.choice([worker for worker, held in in_hand.items() if held])
        if source.random() < loss:
            for given_up in scheduler.lost(worker, "gone"):
                assert given_up.attempts == tries[given_up.task] == scheduler.max_attempts
                ended.append(given_up.task)
            del in_hand[worker]
        else:
            chunk = in_hand[worker].pop(source.randrange(len(in_hand[worker])))
            scheduler.done(worker, chunk)
            ended.append(chunk)
    assert sorted(ended) == chunks
    assert all(count <= scheduler.max_attempts for count in tries.values())
    assert scheduler.n_done + scheduler.n_given_up == n_chunks


def test_a_chunk_that_kills_its_worker_costs_its_neighbours_nothing() -> None:
    chunks = [task(index) for index in range(6)]
    poison, scheduler, worker = chunks[2], Scheduler(chunks, depth=2), 0
    scheduler.worker_ready(worker)
    held: list[Task] = []
    given_up = []
    while not scheduler.finished:
        while (assigned := scheduler.assign()) is not None:
            held.append(assigned[1])
        if poison in held:
            given_up += scheduler.lost(worker, "gone")
            worker, held = worker + 1, []
            scheduler.worker_ready(worker)
        else:
            scheduler.done(worker, held.pop(0))
    assert [item.task for item in given_up] == [poison]
    assert scheduler.n_done == 5


def test_chunks_go_to_the_least_busy_worker() -> None:
    scheduler = Scheduler([task(index) for index in range(4)], depth=2)
    for worker in (0, 1):
        scheduler.worker_ready(worker)
    assert [scheduler.assign()[0] for _ in range(4)] == [0, 1, 0, 1]  # type: ignore[index]
    assert scheduler.assign() is None


def test_a_chunk_cannot_end_twice() -> None:
    scheduler = Scheduler([task(0)])
    scheduler.worker_ready(0)
    assigned = scheduler.assign()
    assert assigned is not None
    scheduler.done(*assigned)
    with pytest.raises(ValueError, match="not in list"):
        scheduler.done(*assigned)


def test_methods_that_share_runs_are_one_task_and_only_what_waits_is_in_it() -> None:
    data = {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "p"}],
        "methods": [{"id": "atp"}, {"id": "exact"}, {"id": "noise", "kind": "atp", "direction": "noise"}],
        "chunk_pairs": 4,
    }
    job = parse_job(data, source="job")
    plan = plan_cells(job, {"d": 6})
    everything = {chunk for cell in plan for chunk in cell.chunks()}
    committed = Chunk(Cell("m", "d", "atp"), 4, 6)
    [(name, tasks)] = tasks_by_model(job, plan, everything - {committed}).items()
    assert name == "m"
    assert [[(chunk.cell.method, chunk.start) for chunk in task] for task in tasks] == [
        [("atp", 0), ("noise", 0)], [("noise", 4)], [("exact", 0)], [("exact", 4)],
    ]  # fmt: skip
