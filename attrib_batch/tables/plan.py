"""The plan of a cell: which of its pairs are which chunk.

A chunk has ``chunk_pairs`` pairs, or a few more: where a boundary would split a group whose pairs stand next to each
other, it is moved to the group's end, so that the statistics of a chunk know their sampling units whole. A group of
more than `MAX_GROUP_CHUNKS` chunks is split all the same: a worker holds a chunk in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attrib_batch.spec import Cell
from attrib_batch.tables.layout import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Boundaries = Callable[[str, int, int, int], dict[int, int]]
    """Of a dataset's id, the first row, the last one, and ``chunk_pairs``: the boundaries that move, and where to."""

MAX_GROUP_CHUNKS = 4
"""The longest group that is not split, in sizes of a chunk. No chunk has more than one size beyond that."""


def no_groups(_dataset: str, _begin: int, _stop: int, _chunk_pairs: int) -> dict[int, int]:
    """Move no boundary: no dataset has groups."""
    return {}


class Tolerant(BaseModel):
    """Accepts unknown keys, so that files of later releases can be read."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Segment(Tolerant):
    """Pairs that were planned at once: those from the end of the segment before it up to ``stop``."""

    stop: int
    chunk_pairs: int
    moved: dict[int, int] = Field(default_factory=dict)
    """Boundaries between chunks that would split a group, and the row at which it ends. Those of earlier releases were
    not moved."""

    def boundaries(self, begin: int) -> Iterator[int]:
        """Yield the rows at which the chunks end of a segment that begins at a row, in order."""
        last = begin
        for regular in (*range(begin + self.chunk_pairs, self.stop, self.chunk_pairs), self.stop):
            boundary = self.moved.get(regular, regular)
            # Boundaries inside one group all move to its end.
            if boundary > last:
                yield boundary
                last = boundary


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
    def of(cls, cell: Cell, n_pairs: int, chunk_pairs: int, boundaries: Boundaries = no_groups) -> Self:
        """Plan ``n_pairs`` pairs of a cell."""
        moved = boundaries(cell.dataset, 0, n_pairs, chunk_pairs)
        segment = Segment(stop=n_pairs, chunk_pairs=chunk_pairs, moved=moved)
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
            for stop in segment.boundaries(begin):
                yield Chunk(self.cell, begin, stop)
                begin = stop

    def to_json(self) -> dict[str, Any]:
        """Return the plan's entry in the manifest; the totals are for people who read it."""
        data = self.model_dump(mode="json")
        for segment in data["segments"]:
            if not segment["moved"]:
                del segment["moved"]
        return {**data, "n_pairs": self.n_pairs, "n_chunks": self.n_chunks}
