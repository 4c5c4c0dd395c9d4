"""Mean activations of every dataset that a method replaces activations by, as a stage before the scoring.

Every component is a method of its own in OUT/reference, so that a job that asks for more components goes on from what
is there. A mean is over all pairs of a dataset that a job names: where more are asked for once it is committed, the job
is refused, since what is scored already was compared with another mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.errors import ResumeMismatchError
from attrib_batch.execution.means import mean_name
from attrib_batch.execution.planning.plan import boundaries_of, has_scores_in
from attrib_batch.execution.planning.request import open_tables
from attrib_batch.execution.planning.stages import OpenRun, PlannedStage, StageWork
from attrib_batch.spec import Component, MethodSpec, Reading
from attrib_batch.spec.method import MEAN
from attrib_batch.spec.registries.methods import MEAN_ACTIVATIONS
from attrib_batch.tables import REFERENCE, CellPlan, StageEntry, Table
from attrib_batch.tables.growth import grow_stage
from attrib_batch.tables.manifest import Identities, with_fingerprints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.pairs.reading.reader import PairTable
    from attrib_batch.spec import SweepSpec
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Manifest


DEFAULT_METRIC = "logit_diff"
"""A metric that reads answers of one token: it says how pairs are read, and is not computed."""


@dataclass(frozen=True)
class MeanActivations:
    """Compute the means that a job's methods need, for each of its models and datasets."""

    name: str = REFERENCE
    needs: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: SweepSpec) -> MeanActivations | None:
        """Return the stage of a job; None where no method needs means."""
        return cls() if any(method.reference == MEAN for method in spec.methods) else None

    def entry(self, spec: SweepSpec, store: Store, manifest: Manifest, tables: Mapping[str, PairTable]) -> StageEntry:
        """Return the stage's entry in a manifest, grown by what a job asks for.

        Args:
            spec: the job.
            store: the run's directory.
            manifest: the one in force, or to be.
            tables: those of the job, by dataset id.

        Raises:
            ResumeMismatchError: means over other pairs, or of another model, are there.
        """
        stage = _stage_spec(spec)
        n_pairs = {name: table.n_rows for name, table in tables.items()}
        scoring = manifest.scoring.identities
        identities = Identities(
            models={model.name: scoring.models.get(model.name, {}) for model in stage.models},
            datasets={name: {**scoring.datasets.get(name, {}), "pairs of the means": n} for name, n in n_pairs.items()},
            methods={method.id: method.identity() for method in stage.methods},
            settings=scoring.settings,
        )
        boundaries = boundaries_of(tables)
        plans = [CellPlan.of(cell, n_pairs[cell.dataset], spec.chunk_pairs, boundaries) for cell in stage.cells]
        entry = StageEntry(
            name=self.name,
            needs=self.needs,
            folder=self.name,
            cells=with_fingerprints(plans, identities),
            identities=identities,
            job={"methods": [method.model_dump(mode="json") for method in stage.methods]},
        )
        before = manifest.stage(self.name)
        return entry if before is None else _grown(before, entry, store.below(self.name))

    def plan(self, run: OpenRun) -> PlannedStage:
        """Plan what is missing.

        Raises:
            ResumeMismatchError: see `entry`.
        """
        store = run.store.below(self.name)
        if run.manifest.stage(self.name) is None:
            # A run of which nothing was scored may have left some.
            for file in [file for table in Table for file in store.list(table, recursive=True)]:
                store.remove(file.relative)
        entry = self.entry(run.spec, run.store, run.manifest, open_tables(run.spec))
        run.write_manifest(run.manifest.with_stage(entry))
        return PlannedStage.of(self.name, StageWork(_stage_spec(run.spec), store, run.pins), entry)


def _stage_spec(spec: SweepSpec) -> SweepSpec:
    # Not checked again: no job may name the stage's kind of method.
    return spec.model_copy(update={"methods": mean_methods(spec), "verify": None})


def _grown(before: StageEntry, asked: StageEntry, store: Store) -> StageEntry:
    try:
        return grow_stage(before, asked, has_scores_in(store), store.root)
    except ResumeMismatchError as error:
        raise ResumeMismatchError(
            f"{store.root} holds mean activations of other pairs or another model, with which what is there was "
            f"scored. A job with reference mean does not grow by pairs: choose another --out.\n{error}"
        ) from error


def mean_methods(spec: SweepSpec) -> tuple[MethodSpec, ...]:
    """Return what the stage computes for a job: a method for each component of which a mean is needed."""
    asking = [method for method in spec.methods if method.reference == MEAN]
    components = dict.fromkeys(component for method in asking for component in method.components)
    # Pairs are read as those methods read them: with whole answers where all of them take these.
    whole = all(Reading.of(method).whole_answers for method in asking)
    return tuple(_mean_method(component, asking[0].metric if whole else DEFAULT_METRIC) for component in components)


def _mean_method(component: Component, metric: str) -> MethodSpec:
    return MethodSpec.model_construct(
        id=mean_name(component),
        kind=MEAN_ACTIVATIONS.kind,
        components=(component,),
        metric=metric,
        direction="noise",
        reference=MEAN,
    )
