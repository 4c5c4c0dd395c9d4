"""The plan of a cell: chunks cover every pair once, however the cell has grown."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.spec import Cell
from attrib_batch.tables import CellPlan

CELL = Cell("model", "dataset", "method")
SEGMENTS = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=4)


@given(SEGMENTS)
def test_chunks_cover_every_pair_once_in_order(sizes: list[tuple[int, int]]) -> None:
    stop, segments = 0, []
    for n_pairs, chunk_pairs in sizes:
        stop += n_pairs
        segments.append({"stop": stop, "chunk_pairs": chunk_pairs})
    plan = CellPlan.model_validate({"model": "m", "dataset": "d", "method": "x", "segments": segments})
    chunks = list(plan.chunks())
    assert (len(chunks), plan.n_pairs) == (plan.n_chunks, stop)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(stop))
    for segment in segments:
        assert any(chunk.stop == segment["stop"] for chunk in chunks), "what was committed keeps its name"


def test_a_plan_of_an_earlier_release_is_one_segment() -> None:
    plan = CellPlan.model_validate(
        {"model": "m", "dataset": "d", "method": "x", "n_pairs": 5, "n_chunks": 2, "chunk_pairs": 3}
    )
    assert [(chunk.start, chunk.stop) for chunk in plan.chunks()] == [(0, 3), (3, 5)]


def test_a_plan_survives_the_manifest() -> None:
    plan = CellPlan.of(CELL, 5, 3)
    assert CellPlan.model_validate(plan.to_json()).segments == plan.segments


def test_a_boundary_inside_a_group_moves_to_its_end_and_is_one_with_others_there() -> None:
    plan = CellPlan.of(CELL, 14, 4, lambda *_: {4: 5, 8: 13, 12: 13})
    assert [(chunk.start, chunk.stop) for chunk in plan.chunks()] == [(0, 5), (5, 13), (13, 14)]
    assert plan.n_chunks == 3
    assert CellPlan.model_validate_json(json.dumps(plan.to_json())) == plan
    to_the_end = CellPlan.of(CELL, 10, 4, lambda *_: {8: 10})
    assert [(chunk.start, chunk.stop) for chunk in to_the_end.chunks()] == [(0, 4), (4, 10)]


def test_a_plan_without_groups_says_nothing_of_moved_boundaries() -> None:
    assert CellPlan.of(CELL, 5, 3).to_json()["segments"] == [{"stop": 5, "chunk_pairs": 3}]
