"""The plan: chunks cover every pair once, and methods that share runs are done together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.execution.planning.plan import CellPlan, plan_cells, tasks_by_model
from attrib_batch.spec import Cell, parse_spec
from attrib_batch.tables import Chunk

CELL = Cell("model", "dataset", "method")


@given(n_pairs=st.integers(1, 500), chunk_pairs=st.integers(1, 60))
def test_chunks_cover_every_pair_once_in_order(n_pairs: int, chunk_pairs: int) -> None:
    plan = CellPlan(CELL, n_pairs, chunk_pairs)
    chunks = list(plan.chunks())
    assert len(chunks) == plan.n_chunks
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(n_pairs))
    assert max(chunk.n_pairs for chunk in chunks) <= chunk_pairs


def test_methods_that_share_runs_are_one_task_and_only_what_waits_is_in_it() -> None:
    data = {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "p"}],
        "methods": [{"id": "atp"}, {"id": "exact"}, {"id": "noise", "kind": "atp", "direction": "noise"}],
        "chunk_pairs": 4,
    }
    job = parse_spec(data, source="job")
    plan = plan_cells(job, {"d": 6})
    everything = {chunk for cell in plan for chunk in cell.chunks()}
    committed = Chunk(Cell("m", "d", "atp"), 4, 6)
    [(name, tasks)] = tasks_by_model(job, plan, everything - {committed}).items()
    assert name == "m"
    assert [[(chunk.cell.method, chunk.start) for chunk in task] for task in tasks] == [
        [("atp", 0), ("noise", 0)], [("noise", 4)], [("exact", 0)], [("exact", 4)],
    ]  # fmt: skip
