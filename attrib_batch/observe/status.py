"""How far a run is, from its files alone: no driver, no Ray, from any machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attrib_batch.errors import ExitCode
from attrib_batch.observe.history import last_speed_without_log, read_history, speeds_without_log
from attrib_batch.storage.lease import read_holder
from attrib_batch.storage.remote_jobs import jobs_under_way
from attrib_batch.storage.store import Store
from attrib_batch.tables import SCORING, VERIFICATION, Chunk, Table, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.observe.history import History, InHand
    from attrib_batch.observe.speed import Speeds
    from attrib_batch.spec import Cell
    from attrib_batch.storage.lease import Holder
    from attrib_batch.storage.remote_jobs import RemoteJob
    from attrib_batch.tables import CellPlan


@dataclass(frozen=True)
class CellStatus:
    """How far one cell is, in pairs."""

    cell: Cell
    expected: int
    scored: int
    failed: int
    reasons: Counter[str] = field(default_factory=Counter)
    """Why pairs failed, and how many."""
    stage: str = SCORING

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
    holder: Holder | None
    """Who has the lease; one that died may have left it."""
    running: bool
    """Whether a driver is at work, as far as the lease tells."""
    history: History | None
    """What the newest log tells."""
    pairs_per_second: float | None = None
    """Of the models at work, lately, or of the last execution; pairs that failed included."""
    speeds: Speeds | None = None
    """Of each model; None where nothing tells them and no driver is at work."""

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the run if it ended now."""
        if self.waiting:
            return ExitCode.UNFINISHED
        return ExitCode.SOME_FAILED if any(cell.failed for cell in self.cells) else ExitCode.OK

    @property
    def scored(self) -> int:
        """Pairs with scores, in all cells."""
        return sum(cell.scored for cell in self.cells)

    @property
    def waiting(self) -> int:
        """Pairs in no committed chunk, in all cells."""
        return sum(cell.waiting for cell in self.cells)

    @property
    def in_flight(self) -> list[InHand]:
        """What workers have in hand; nothing where no driver is at work, since workers end with it."""
        if not self.running or self.history is None or self.holder is None:
            return []
        return self.history.in_hand if self.history.execution == self.holder.execution else []

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end; None where nothing is waiting, at work, or known."""
        if not self.running or not self.waiting or self.speeds is None:
            return None
        ended = self.history.models_ended if self.history else frozenset()
        left: Counter[str] = Counter()
        stage = next(cell.stage for cell in self.cells if cell.waiting)
        for cell in self.cells:
            if cell.cell.model not in ended and cell.stage == stage:
                left[cell.cell.model] += cell.waiting
        return self.speeds.seconds_left(left)

    @property
    def reasons(self) -> Counter[str]:
        """Why pairs failed, in all cells."""
        return sum((cell.reasons for cell in self.cells), Counter())


def read_status(out: str | Path | Store) -> RunStatus:
    """Count what is committed, and look for who is at work.

    Raises:
        OutputError: ``out`` is not the directory of a run.
    """
    store = Store.parse(out)
    manifest = read_manifest(store)
    # Before the tables: what is in hand now may be committed when they are counted, never the other way round.
    holder = read_holder(store)
    running = holder is not None and holder.seems_at_work
    heard_of_at = holder.renewed_at if holder and running else 0.0
    history = read_history(store, heard_of_at=heard_of_at)
    cells = [
        _count(store.below(stage.folder) if stage.folder else store, plan, stage.name)
        for stage in manifest.stages
        for plan in stage.cells
    ]
    speeds = history.speeds if history else None
    if history is None and running:
        waiting = {cell.cell: cell.waiting for cell in cells if cell.stage == SCORING}
        speeds = speeds_without_log(store, waiting, heard_of_at=heard_of_at)
    speed = last_speed_without_log(store) if speeds is None else speeds.now
    remote_jobs = [*jobs_under_way(store), *jobs_under_way(store.below(VERIFICATION))]
    return RunStatus(cells, remote_jobs, holder, running, history, speed, speeds)


def _count(store: Store, plan: CellPlan, stage: str) -> CellStatus:
    cell = plan.cell
    committed = store.parts(Table.SCORES, cell.partition)
    with_failures = committed & store.parts(Table.FAILURES, cell.partition)
    reasons: Counter[str] = Counter()
    for start, stop in with_failures:
        reasons += _reasons(store, Chunk(cell, start, stop).path(Table.FAILURES))
    failed = reasons.total()
    scored = sum(stop - start for start, stop in committed) - failed
    return CellStatus(cell, plan.n_pairs, scored, failed, reasons, stage)


def _reasons(store: Store, relative: str) -> Counter[str]:
    try:
        return Counter(store.read_table(relative, ["error"])["error"].to_pylist())
    except FileNotFoundError:  # a run that tries failures again has just replaced the chunk
        return Counter()
