"""The stages of a plan: each has chunks, and begins when the stages that it needs are committed.

A stage is planned when it begins, since what it computes may depend on what others committed. Its chunks, its
identities and its place in the run's directory are in the manifest before a worker sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from attrib_batch.execution.means import join_means
from attrib_batch.execution.planning.plan import tasks_by_model, uncommitted
from attrib_batch.spec.method import MEAN
from attrib_batch.tables import MANIFEST, REFERENCE, SCORING

if TYPE_CHECKING:
    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.spec import SweepSpec
    from attrib_batch.storage.lease import Lease
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import CellPlan, Manifest, StageEntry


@dataclass(frozen=True)
class StageWork:
    """What a worker needs to know beside a task: what all tasks of a stage have in common."""

    spec: SweepSpec
    """The stage's methods and datasets."""
    store: Store
    """Where its tables lie."""
    pins: dict[str, str]
    """By dataset id, what workers compare with what they find: see `PairTable.pin`."""
    reference: Store | None = None
    """Where mean activations are, if any method needs them."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage that may begin."""

    name: str
    work: StageWork
    cells: list[CellPlan]
    waiting: dict[str, list[Task]]
    """What is not committed yet, by model."""

    @classmethod
    def of(cls, name: str, work: StageWork, entry: StageEntry, *, retry_failures: bool = False) -> PlannedStage:
        """Plan what a stage's entry in the manifest holds of the cells of ``work``."""
        asked = set(work.spec.cells)
        cells = [plan for plan in entry.cells if plan.cell in asked]
        waiting = uncommitted(work.store, cells, retry_failures=retry_failures)
        return cls(name, work, cells, tasks_by_model(work.spec, cells, waiting))

    @property
    def n_pairs(self) -> int:
        """Pairs of the stage, counted once for each cell."""
        return sum(plan.n_pairs for plan in self.cells)

    @property
    def n_waiting(self) -> dict[str, int]:
        """Pairs that are not committed, by model."""
        return {model: sum(chunk.n_pairs for task in tasks for chunk in task) for model, tasks in self.waiting.items()}


@dataclass
class OpenRun:
    """A run's directory that this process holds, and what is to be done in it."""

    spec: SweepSpec
    """What is asked now, with absolute paths."""
    store: Store
    manifest: Manifest
    lease: Lease
    """Held until the run is released."""
    pins: dict[str, str]
    """By dataset id, as in `StageWork`."""
    resumed: bool = False
    retry_failures: bool = False
    """Whether committed chunks with pairs in failures are computed again."""
    stages: tuple[Stage, ...] = field(default_factory=tuple)
    """What is to be done, in an order in which every stage comes after those that it needs."""

    def write_manifest(self, manifest: Manifest) -> None:
        """Commit a manifest in place of the one in force.

        Raises:
            OutputError: the directory cannot be written.
        """
        self.store.write_bytes(MANIFEST, manifest.to_bytes())
        self.manifest = manifest


class Stage(Protocol):
    """A part of a run that begins when others are committed."""

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that must be committed before it begins, as far as the run has them."""
        ...

    def plan(self, run: OpenRun) -> PlannedStage:
        """Plan the stage, in the manifest too.

        Raises:
            RequestError: it cannot be done as asked.
        """
        ...


@dataclass(frozen=True)
class Scoring:
    """Score every pair of every cell that the job names."""

    name: str = SCORING
    needs: tuple[str, ...] = (REFERENCE,)

    def plan(self, run: OpenRun) -> PlannedStage:
        """Plan what the manifest holds of the job; means that its methods need are committed by now."""
        averages = any(method.reference == MEAN for method in run.spec.methods)
        if averages and (means := run.manifest.stage(REFERENCE)) is not None:
            join_means(run.store.below(REFERENCE), (chunk for plan in means.cells for chunk in plan.chunks()))
        work = StageWork(run.spec, run.store, run.pins, run.store.below(REFERENCE))
        return PlannedStage.of(self.name, work, run.manifest.scoring, retry_failures=run.retry_failures)
