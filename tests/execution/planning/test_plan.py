"""Tasks: chunks of the same pairs, for methods that share forward passes."""

from __future__ import annotations

from typing import Any

from attrib_batch.execution.planning.plan import tasks_by_model
from attrib_batch.spec import Cell, parse_spec
from attrib_batch.tables import CellPlan, Chunk

DATA: dict[str, Any] = {
    "name": "job",
    "models": [{"id": "m", "prepend_bos": False}],
    "datasets": [{"id": "d", "path": "p"}],
    "methods": [{"id": "atp"}, {"id": "exact"}, {"id": "noise", "kind": "atp", "direction": "noise"}],
    "chunk_pairs": 4,
}


def tasks_of(plans: list[CellPlan], committed: set[Chunk]) -> list[list[tuple[str, int, int]]]:
    waiting = {chunk for plan in plans for chunk in plan.chunks()} - committed
    [(name, tasks)] = tasks_by_model(parse_spec(DATA, source="job"), plans, waiting).items()
    assert name == "m"
    return [[(chunk.cell.method, chunk.start, chunk.stop) for chunk in task] for task in tasks]


def test_methods_that_share_forward_passes_are_one_task_and_only_what_waits_is_in_it() -> None:
    plans = [CellPlan.of(cell, 6, 4) for cell in parse_spec(DATA, source="job").cells]
    assert tasks_of(plans, {Chunk(Cell("m", "d", "atp"), 4, 6)}) == [
        [("atp", 0, 4), ("noise", 0, 4)], [("noise", 4, 6)], [("exact", 0, 4)], [("exact", 4, 6)],
    ]  # fmt: skip


def test_cells_that_were_cut_differently_share_what_they_can() -> None:
    cells = {method: Cell("m", "d", method) for method in ("atp", "exact", "noise")}
    grown = CellPlan.model_validate(
        {"model": "m", "dataset": "d", "method": "atp", "segments": [
            {"stop": 6, "chunk_pairs": 4}, {"stop": 10, "chunk_pairs": 4},
        ]}
    )  # fmt: skip
    plans = [grown, CellPlan.of(cells["noise"], 10, 4), CellPlan.of(cells["exact"], 10, 10)]
    assert tasks_of(plans, set()) == [
        [("atp", 0, 4), ("noise", 0, 4)], [("atp", 4, 6)], [("noise", 4, 8)], [("atp", 6, 10)], [("noise", 8, 10)],
        [("exact", 0, 10)],
    ]  # fmt: skip
