"""The plan: which pairs of which cell are which chunk. A pure function of the job and the tables' sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.schema import Cell, Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.spec import Job


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


def plan_cells(job: Job, n_rows: Mapping[str, int]) -> list[CellPlan]:
    """Plan every cell of a job.

    Args:
        job: the job.
        n_rows: pairs of each dataset, by its id, the job's limit applied.
    """
    return [CellPlan(cell, n_rows[cell.dataset], job.chunk_pairs) for cell in job.cells]
