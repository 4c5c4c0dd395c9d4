"""The scheduler without Ray: every chunk ends once, budgets hold, whatever the order of events."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.run.plan import CellPlan
from attrib_batch.run.scheduler import Scheduler
from attrib_batch.schema import Cell, Chunk

CELL = Cell("model", "dataset", "method")


@given(n_pairs=st.integers(1, 500), chunk_pairs=st.integers(1, 60))
def test_chunks_cover_every_pair_once_in_order(n_pairs: int, chunk_pairs: int) -> None:
    plan = CellPlan(CELL, n_pairs, chunk_pairs)
    chunks = list(plan.chunks())
    assert len(chunks) == plan.n_chunks
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(n_pairs))
    assert max(chunk.n_pairs for chunk in chunks) <= chunk_pairs


@given(n_chunks=st.integers(0, 30), n_workers=st.integers(1, 5), loss=st.floats(0, 0.9), seed=st.integers(0, 999))
def test_every_chunk_ends_exactly_once(n_chunks: int, n_workers: int, loss: float, seed: int) -> None:
    chunks = [Chunk(CELL, index, index + 1) for index in range(n_chunks)]
    scheduler, source = Scheduler(chunks), random.Random(seed)
    in_flight: list[Chunk] = []
    tries: dict[Chunk, int] = {}
    ended: list[Chunk] = []
    while not scheduler.finished:
        while len(in_flight) < n_workers and (chunk := scheduler.assign()) is not None:
            in_flight.append(chunk)
            tries[chunk] = tries.get(chunk, 0) + 1
        chunk = in_flight.pop(source.randrange(len(in_flight)))
        if source.random() < loss:
            given_up = scheduler.lost(chunk, "gone")
            if given_up is not None:
                assert given_up.attempts == tries[chunk] == scheduler.max_attempts
                ended.append(chunk)
        else:
            scheduler.done(chunk)
            ended.append(chunk)
    assert sorted(ended) == chunks
    assert all(count <= scheduler.max_attempts for count in tries.values())
    assert scheduler.n_done + scheduler.n_given_up == n_chunks


def test_a_lost_chunk_is_first_in_line() -> None:
    chunks = [Chunk(CELL, index, index + 1) for index in range(3)]
    scheduler = Scheduler(chunks)
    first = scheduler.assign()
    assert first is not None
    assert scheduler.lost(first, "gone") is None
    assert scheduler.assign() == first


def test_a_chunk_cannot_end_twice() -> None:
    scheduler = Scheduler([Chunk(CELL, 0, 1)])
    chunk = scheduler.assign()
    assert chunk is not None
    scheduler.done(chunk)
    with pytest.raises(KeyError):
        scheduler.done(chunk)
