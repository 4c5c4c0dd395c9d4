"""The plan of a cell: which of its pairs are which chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from attrib_batch.spec import Cell
from attrib_batch.tables.layout import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator


class Tolerant(BaseModel):
    """Accepts unknown keys, so that files of later releases can be read."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Segment(Tolerant):
    """Pairs that were planned at once: those from the end of the segment before it up to ``stop``."""

    stop: int
    chunk_pairs: int


class CellPlan(Tolerant):
    """The chunks of one cell of the sweep.

    A cell grows by segments: the chunks of earlier ones stay as they were committed, the last one of each may be
    shorter.
    """

    model: str
    dataset: str
    method: str
    segments: tuple[Segment, ...]
    fingerprint: str = ""
    """A hash of everything that the cell's numbers depend on; see `manifest`."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """Leave out the totals, which follow; read a plan of an earlier release, which had one size of chunks."""
        if not isinstance(data, dict):
            return data
        kept = {key: value for key, value in data.items() if key not in {"n_pairs", "n_chunks", "chunk_pairs"}}
        if "segments" not in data and "n_pairs" in data:
            n_pairs = data["n_pairs"]
            kept["segments"] = [{"stop": n_pairs, "chunk_pairs": data.get("chunk_pairs", max(n_pairs, 1))}]
        return kept

    @classmethod
    def of(cls, cell: Cell, n_pairs: int, chunk_pairs: int) -> Self:
        """Plan ``n_pairs`` pairs of a cell."""
        segment = Segment(stop=n_pairs, chunk_pairs=chunk_pairs)
        return cls(model=cell.model, dataset=cell.dataset, method=cell.method, segments=(segment,))

    @property
    def cell(self) -> Cell:
        """The cell's names."""
        return Cell(self.model, self.dataset, self.method)

    @property
    def n_pairs(self) -> int:
        """How many pairs the cell has."""
        return self.segments[-1].stop

    @property
    def n_chunks(self) -> int:
        """How many chunks the cell has."""
        return sum(1 for _ in self.chunks())

    def chunks(self) -> Iterator[Chunk]:
        """Yield the cell's chunks in order."""
        begin = 0
        for segment in self.segments:
            for start in range(begin, segment.stop, segment.chunk_pairs):
                yield Chunk(self.cell, start, min(start + segment.chunk_pairs, segment.stop))
            begin = segment.stop

    def to_json(self) -> dict[str, Any]:
        """Return the plan's entry in the manifest; the totals are for people who read it."""
        return {**self.model_dump(mode="json"), "n_pairs": self.n_pairs, "n_chunks": self.n_chunks}
