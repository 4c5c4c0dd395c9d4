"""Where each table lies in a run's directory: partitions and parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from attrib_batch.tables.moments import MOMENTS, STRATA
from attrib_batch.tables.schema import BASELINES, FAILURES, MEANS, MEASURED, PROMPTS, SCORES

if TYPE_CHECKING:
    import pyarrow as pa

    from attrib_batch.spec import Cell


class Table(StrEnum):
    """A partitioned table of a run's directory; the value is its folder."""

    SCORES = "scores"
    BASELINES = "baselines"
    FAILURES = "failures"
    MOMENTS = "moments"
    STRATA = "strata"
    PROMPTS = "prompts"
    MEASURED = "measured"
    MEANS = "means"

    @property
    def schema(self) -> pa.Schema:
        """The table's Arrow schema, without the partition columns."""
        return {
            Table.SCORES: SCORES,
            Table.BASELINES: BASELINES,
            Table.FAILURES: FAILURES,
            Table.MOMENTS: MOMENTS,
            Table.STRATA: STRATA,
            Table.PROMPTS: PROMPTS,
            Table.MEASURED: MEASURED,
            Table.MEANS: MEANS,
        }[self]


@dataclass(frozen=True, order=True)
class Chunk:
    """The pairs [start, stop) of one cell, in the plan's order: the unit of work, commit and retry."""

    cell: Cell
    start: int
    stop: int

    @property
    def n_pairs(self) -> int:
        """How many pairs the chunk holds."""
        return self.stop - self.start

    def path(self, table: Table) -> str:
        """Return the path of the chunk's file of ``table``, relative to the run's directory."""
        return f"{table}/{self.cell.partition}/{part_name(self.start, self.stop)}"


def part_name(start: int, stop: int) -> str:
    """Return the file name of the pairs [start, stop); names sort in the order of the pairs."""
    return f"part-{start:09d}-{stop:09d}.parquet"


_PART = re.compile(r"^part-(\d{9,})-(\d{9,})\.parquet$")


def parse_part_name(name: str) -> tuple[int, int] | None:
    """Return the pair range that a file name states, or None for a file that is not a part."""
    match = _PART.match(name)
    return (int(match[1]), int(match[2])) if match else None
