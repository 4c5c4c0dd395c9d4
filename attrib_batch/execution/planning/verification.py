"""Check a run's estimates: measure a sample of its pairs with activation patching, as a stage of the run.

The sample is drawn from the pairs that every method of the job scored, and kept as a table of pairs in
OUT/verification/pairs. It is the first units of a random order, see `attrib_batch.tables.sampling`, and what was
measured before. So a sample grows: more pairs are drawn beside those it has; and where the run has grown, some of the
new pairs are, so that it stays a random sample of all. The measurement is that of kind ``exact``, under a name of its
own, in OUT/verification; estimates of the same metric in the same direction share it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import RequestError, ResumeMismatchError
from attrib_batch.execution.planning.inputs import find_inputs
from attrib_batch.execution.planning.paths import with_ndif_host
from attrib_batch.execution.planning.plan import has_scores_in, uncommitted
from attrib_batch.execution.planning.request import check_models, find_fingerprints
from attrib_batch.execution.planning.stages import OpenRun, PlannedStage, StageWork
from attrib_batch.pairs.making.writer import serialize_pairs
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import DEFAULT_VERIFIED_PAIRS, Cell, MethodSpec, parse_spec
from attrib_batch.spec.method import CORRUPTED, reference_of
from attrib_batch.spec.positions import ALL
from attrib_batch.spec.registries.methods import EXACT, method_entry
from attrib_batch.storage.lease import Lease
from attrib_batch.storage.store import Store
from attrib_batch.tables import (
    MANIFEST,
    REFERENCE,
    SCHEMA_VERSION,
    SCORING,
    VERIFICATION,
    CellPlan,
    Chunk,
    Manifest,
    StageEntry,
    Table,
    read_manifest,
)
from attrib_batch.tables.growth import grow_stage
from attrib_batch.tables.manifest import Identities, with_fingerprints
from attrib_batch.tables.sampling import SEED, Unit, in_random_order, pairs_by_unit, sample_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from attrib_batch.execution.planning.inputs import InputLocations
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.reading.reader import Pair
    from attrib_batch.spec import DatasetSpec, SweepSpec

CHUNK_PAIRS = 4
"""Pairs in a chunk of the measurement: it costs hundreds of times what the estimate does."""
READ_PAIRS = 4096


@dataclass(frozen=True)
class _Sample:
    """The pairs of one dataset that are measured."""

    kept: list[Pair]
    """Those of its table, in order; they stay in front."""
    new: frozenset[int]
    """The ids of those that are drawn now."""

    @property
    def n_pairs(self) -> int:
        return len(self.kept) + len(self.new)

    def write(self, store: Store, dataset: DatasetSpec) -> None:
        """Write the sample as a table of its own, unless it is there."""
        if not self.new:
            return
        table = PairTable.open(dataset.path, dataset.limit, corrupted=False)
        rows = (pair for batch in table.batches(READ_PAIRS) for pair in batch if pair.pair_id in self.new)
        store.write_bytes(sample_path(dataset.id), serialize_pairs(chain(self.kept, rows), form=table.form))


@dataclass(frozen=True)
class Verification:
    """Measure a sample of pairs that every method scored."""

    pairs: int = DEFAULT_VERIFIED_PAIRS
    """Pairs to sample from each dataset; a pair and its mirror are sampled together."""
    seed: int = 0
    """The same seed samples the same pairs."""
    at: str | tuple[str, ...] = ALL
    """The positions that are measured: all, last, or names of roles. One at the last position is a single token."""
    name: str = VERIFICATION
    needs: tuple[str, ...] = (SCORING,)

    @classmethod
    def of(cls, spec: SweepSpec) -> Verification | None:
        """Return the verification that a job asks for, None where it asks for none.

        Raises:
            RequestError: the job has nothing to verify.
        """
        if spec.verify is None:
            return None
        if not _estimates(spec):
            raise RequestError("verify: every method of the job is exact already; there is no estimate to check")
        return cls(spec.verify.pairs, spec.verify.seed, spec.verify.at)

    def is_committed(self, store: Store, manifest: Manifest, spec: SweepSpec) -> bool:
        """Return whether the manifest has this verification of a job, and all of it is committed."""
        entry = manifest.stage(self.name)
        if entry is None:
            return False
        if _exact_methods(_estimates(spec), entry, self.at) != list(entry.job.get("methods", ())):
            return False
        measured = {(plan.model, plan.dataset) for plan in entry.cells}
        wanted = {(cell.model, cell.dataset) for cell in spec.cells}
        return (
            wanted <= measured
            and not uncommitted(store.below(self.name), entry.cells)
            and not any(self._draw(store, spec, dataset.id, entry).new for dataset in spec.datasets)
        )

    def plan(self, run: OpenRun) -> PlannedStage:
        """Draw the sample, and plan its measurement.

        Raises:
            RequestError: no pair is scored by every method.
            ResumeMismatchError: what is measured already is another sample, or was measured with another model.
        """
        store = run.store.below(self.name)
        before = run.manifest.stage(self.name)
        methods = _exact_methods(_estimates(run.spec), before, self.at)
        samples = {dataset.id: self._draw(run.store, run.spec, dataset.id, before) for dataset in run.spec.datasets}
        for name, sample in samples.items():
            if not sample.n_pairs:
                raise RequestError(
                    f"{run.store.root}: no pair of dataset {name} is scored by every method yet; run the job first"
                )
        data = run.spec.model_dump(mode="json") | {
            "chunk_pairs": CHUNK_PAIRS,
            "methods": methods,
            "datasets": [{"id": name, "path": str(run.store.path(sample_path(name)))} for name in samples],
            "verify": None,
        }
        spec = parse_spec(data, source=self.name)
        entry = self._entry(run.manifest, spec, {name: sample.n_pairs for name, sample in samples.items()})
        if before is not None:
            entry = self._grown(before, entry, store)
        # Not earlier: a sample that is refused must not take the place of the one that is measured.
        for name, sample in samples.items():
            sample.write(run.store, run.spec.dataset(name))
        run.write_manifest(run.manifest.with_stage(entry))
        tables = {dataset.id: PairTable.open(dataset.path, corrupted=False) for dataset in spec.datasets}
        pins = {name: table.fingerprint() if table.is_local else table.pin() for name, table in tables.items()}
        return PlannedStage.of(self.name, StageWork(spec, store, pins, run.store.below(REFERENCE)), entry)

    def _entry(self, manifest: Manifest, spec: SweepSpec, n_pairs: Mapping[str, int]) -> StageEntry:
        scoring = manifest.scoring.identities
        identities = Identities(
            models={model.name: scoring.models.get(model.name, {}) for model in spec.models},
            datasets={
                dataset.id: {**scoring.datasets.get(dataset.id, {}), SEED: self.seed} for dataset in spec.datasets
            },
            methods={method.id: method.identity() for method in spec.methods},
            settings=scoring.settings,
        )
        plans = [CellPlan.of(cell, n_pairs[cell.dataset], spec.chunk_pairs) for cell in spec.cells]
        return StageEntry(
            name=self.name,
            needs=self.needs,
            folder=self.name,
            cells=with_fingerprints(plans, identities),
            identities=identities,
            job={
                "methods": [method.model_dump(mode="json") for method in spec.methods],
                "datasets": [{"id": dataset.id, "path": sample_path(dataset.id)} for dataset in spec.datasets],
            },
        )

    def _grown(self, before: StageEntry, asked: StageEntry, store: Store) -> StageEntry:
        try:
            return grow_stage(before, asked, has_scores_in(store), store.root)
        except ResumeMismatchError as error:
            raise ResumeMismatchError(
                f"{store.root} holds a verification of another sample or model; remove it to verify anew.\n{error}"
            ) from error

    def _draw(self, store: Store, spec: SweepSpec, dataset: str, before: StageEntry | None) -> _Sample:
        """Draw as many pairs of a dataset as are asked for; those that were measured before stay beside them."""
        kept = self._kept(store, dataset, before)
        units = _scored_units(store, [cell for cell in spec.cells if cell.dataset == dataset])
        drawn: set[int] = set()
        for unit in in_random_order(units, self.seed):
            if len(drawn) >= self.pairs:
                break
            drawn |= units[unit]
        return _Sample(kept, frozenset(drawn - {pair.pair_id for pair in kept}))

    def _kept(self, store: Store, dataset: str, before: StageEntry | None) -> list[Pair]:
        """Return the pairs of the sample that is there, in order; none where it was drawn with another seed."""
        identity = before.identities.datasets.get(dataset) if before else None
        path = sample_path(dataset)
        if identity is None or identity.get(SEED) != self.seed or not store.exists(path):
            return []
        table = PairTable.open(str(store.path(path)), corrupted=False)
        return table.rows(0, table.n_rows)


def open_verification(
    out: str | Path | Store,
    verification: Verification,
    *,
    ndif_host: str | None = None,
    locations: InputLocations | None = None,
    workers_here: bool = True,
    given: Mapping[str, LoadedModel] | None = None,
) -> OpenRun:
    """Open a run of which pairs are to be measured, whether or not it is finished.

    Args:
        out: the run's directory.
        verification: what is to be measured.
        ndif_host: as for a run.
        locations: where the run's datasets and models lie now, if not where they were.
        workers_here: as for a run.
        given: as for a run.

    Raises:
        RequestError: there is nothing to check, the models or datasets are not found, or an earlier release wrote
            the run.
    """
    store = Store.parse(out).resolved()
    manifest = read_manifest(store)
    if manifest.schema_version != SCHEMA_VERSION:
        raise RequestError(
            f"{out} was written by an earlier release (schema version {manifest.schema_version}, this one writes "
            f"{SCHEMA_VERSION}), which may have taken other tokens for answers: what is measured now could not be "
            "compared with its scores. Run the job in another --out and verify that"
        )
    spec = parse_spec(manifest.job, source=str(store.path(MANIFEST)))
    if not _estimates(spec):
        raise RequestError(f"{out}: every method of the job is exact already; there is no estimate to check")
    spec = with_ndif_host(find_inputs(manifest, spec, locations, given=given or {}), ndif_host)
    if not verification.is_committed(store, manifest, spec):
        sources, _ = find_fingerprints(spec, given or {})
        check_models(spec, sources, workers_here=workers_here, given=given or {}, verifies=True)
    lease = Lease.take(store)
    resumed = manifest.stage(verification.name) is not None
    return OpenRun(spec, store, read_manifest(store), lease, pins={}, resumed=resumed, stages=(verification,))


def _estimates(spec: SweepSpec) -> list[MethodSpec]:
    return [method for method in spec.methods if not method_entry(method.kind).measured]


def _exact_methods(
    estimates: Sequence[MethodSpec], before: StageEntry | None, at: str | tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the fewest exact methods that measure what ``estimates`` estimate, those that are there already first."""
    exact: list[dict[str, Any]] = list(before.job.get("methods", ())) if before else []
    positions = at if isinstance(at, str) else list(at)
    alike: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for method in estimates:
        alike[method.metric, method.direction, method.reference].update(dict.fromkeys(map(str, method.components)))
    for (metric, direction, reference), components in alike.items():
        asked = metric, direction, reference
        same = [item for item in exact if (item["metric"], item["direction"], reference_of(item)) == asked]
        measured = {
            component for item in same for component in item["components"] if item.get("at", ALL) in (ALL, positions)
        }
        missing = [component for component in components if component not in measured]
        if missing:
            name = EXACT if (metric, direction) == ("logit_diff", "denoise") else f"{EXACT}-{metric}-{direction}"
            name = name if reference == CORRUPTED else f"{name}-{reference}"
            number = f"-{len(same) + 1}" if same else ""
            method = MethodSpec.model_validate(
                {
                    "id": f"{name}{number}",
                    "kind": EXACT,
                    "components": missing,
                    "metric": metric,
                    "direction": direction,
                    "reference": reference,
                    "at": positions,
                }
            )
            exact.append(method.model_dump(mode="json"))
    return exact


def _scored_units(store: Store, cells: Sequence[Cell]) -> dict[Unit, set[int]]:
    """Return pair ids scored in every one of ``cells``, by sampling unit."""
    scored = [dict(_scored_pairs(store, cell)) for cell in cells]
    return pairs_by_unit({pair: group for pair, group in scored[0].items() if all(pair in one for one in scored[1:])})


def _scored_pairs(store: Store, cell: Cell) -> Iterator[tuple[int, int | None]]:
    for start, stop in sorted(store.parts(Table.SCORES, cell.partition)):
        rows = store.read_table(Chunk(cell, start, stop).path(Table.BASELINES), ["pair_id", "group"])
        yield from zip(rows["pair_id"].to_pylist(), rows["group"].to_pylist(), strict=True)
