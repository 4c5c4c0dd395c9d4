"""The plan: which pairs of which cell are which chunk. A pure function of the job and the tables' sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.spec import Cell, share_forward_passes
from attrib_batch.tables import Chunk

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from attrib_batch.spec import SweepSpec


@dataclass(frozen=True)
class CellPlan:
    """The work of one cell of the sweep."""

    cell: Cell
    n_pairs: int
    chunk_pairs: int

    @property
    def n_chunks(self) -> int:
        """How many chunks the cell has."""
        return -(-self.n_pairs // self.chunk_pairs)

    def chunks(self) -> Iterator[Chunk]:
        """The cell's chunks in order; the last one may be shorter."""
        for start in range(0, self.n_pairs, self.chunk_pairs):
            yield Chunk(self.cell, start, min(start + self.chunk_pairs, self.n_pairs))

    def to_json(self) -> dict[str, Any]:
        """The plan's entry in the manifest."""
        return {
            "model": self.cell.model,
            "dataset": self.cell.dataset,
            "method": self.cell.method,
            "n_pairs": self.n_pairs,
            "n_chunks": self.n_chunks,
            "chunk_pairs": self.chunk_pairs,
        }


Task = tuple[Chunk, ...]
"""What a worker does at once: the same pairs of one model and dataset, for methods that share forward passes."""


def tasks_by_model(spec: SweepSpec, plan: Sequence[CellPlan], waiting: Container[Chunk]) -> dict[str, list[Task]]:
    """The tasks that compute the chunks in ``waiting``, for each model in the order they are to be done."""
    plans = {cell_plan.cell: cell_plan for cell_plan in plan}
    tasks: dict[str, list[Task]] = {model.name: [] for model in spec.models}
    for model in spec.models:
        for dataset in spec.datasets:
            for methods in share_forward_passes(spec.methods):
                chunks = [plans[Cell(model.name, dataset.id, method.id)].chunks() for method in methods]
                for same_pairs in zip(*chunks, strict=True):
                    task = tuple(chunk for chunk in same_pairs if chunk in waiting)
                    if task:
                        tasks[model.name].append(task)
    return tasks


def plan_cells(spec: SweepSpec, n_rows: Mapping[str, int]) -> list[CellPlan]:
    """Plan every cell of a job.

    Args:
        spec: the job.
        n_rows: pairs of each dataset, by its id, the job's limit applied.
    """
    return [CellPlan(cell, n_rows[cell.dataset], spec.chunk_pairs) for cell in spec.cells]
