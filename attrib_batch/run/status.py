"""How far a run is, from its files alone: no driver, no Ray, from any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def read_status(out: str | Path) -> RunStatus:
    """Count what is committed.

    Raises:
        OutputError: ``out`` is not the directory of a run.
    """
    store = Store.parse(out)
    manifest = read_manifest(store)
    if manifest is None:
        raise OutputError(f"{out} has no {MANIFEST}: it is not the directory of a run")
    cells = []
    for entry in manifest["plan"]:
        cell = Cell(entry["model"], entry["dataset"], entry["method"])
        committed = store.parts(Table.SCORES, cell.partition)
        done = sum(stop - start for start, stop in committed)
        with_failures = committed & store.parts(Table.FAILURES, cell.partition)
        failed = sum(store.count_rows(Chunk(cell, *part).path(Table.FAILURES)) for part in with_failures)
        cells.append(CellStatus(cell, entry["n_pairs"], done - failed, failed))
    return RunStatus(cells, jobs_under_way(store))
