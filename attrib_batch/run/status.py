"""How far a run is, from its files alone: no driver, no Ray, from any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from attrib_batch.errors import ExitCode, OutputError
from attrib_batch.run.manifest import MANIFEST, read_manifest
from attrib_batch.schema import Cell, Chunk, Table
from attrib_batch.store import Store
from attrib_batch.workers.ndif_jobs import jobs_under_way

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.workers.ndif_jobs import RemoteJob


@dataclass(frozen=True)
class CellStatus:
    """How far one cell is, in pairs."""

    cell: Cell
    expected: int
    scored: int
    failed: int

    @property
    def waiting(self) -> int:
        """Pairs in no committed chunk."""
        return self.expected - self.scored - self.failed


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    cells: list[CellStatus]
    remote_jobs: list[RemoteJob]
    """Jobs on NDIF servers whose results are not fetched yet."""

    @property
    def exit_code(self) -> ExitCode:
        """What the run would end with if it ended now."""
        if any(cell.waiting for cell in self.cells):
            return ExitCode.UNFINISHED
        return ExitCode.SOME_FAILED if any(cell.failed for cell in self.cells) else ExitCode.OK


def read_status(out: Path) -> RunStatus:
    """Count what is committed.

    Raises:
        OutputError: ``out`` is not the directory of a run.
    """
    store = Store(out)
    manifest = read_manifest(store)
    if manifest is None:
        raise OutputError(f"{out} has no {MANIFEST}: it is not the directory of a run")
    cells = []
    for entry in manifest["plan"]:
        cell = Cell(entry["model"], entry["dataset"], entry["method"])
        scored = failed = 0
        for start, stop in store.parts(Table.SCORES, cell.partition):
            chunk = Chunk(cell, start, stop)
            n_failed = _rows(store, chunk.path(Table.FAILURES)) if store.exists(chunk.path(Table.FAILURES)) else 0
            failed += n_failed
            scored += chunk.n_pairs - n_failed
        cells.append(CellStatus(cell, entry["n_pairs"], scored, failed))
    return RunStatus(cells, jobs_under_way(store))


def _rows(store: Store, relative: str) -> int:
    rows: int = pq.read_metadata(store.path(relative)).num_rows
    return rows
