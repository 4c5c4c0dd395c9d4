"""The plan of a cell: chunks cover every pair once, however the cell has grown."""

from __future__ import annotations

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
