"""Check a run's estimates: measure a sample of its pairs with activation patching.

The measurement is a run of its own, in OUT/verification/exact: the same models, the sampled pairs, and kind ``exact``.
It resumes like any run. Methods that attribute the same metric in the same direction share one measurement.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from attrib_batch.errors import OutputError, RequestError, ResumeMismatchError
from attrib_batch.execution.planning.inputs import find_inputs
from attrib_batch.execution.planning.manifest import MANIFEST, read_manifest
from attrib_batch.execution.planning.prepare import PreparedRun, prepare_run
from attrib_batch.pairs.making.writer import encode_pairs
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, MethodSpec, SweepSpec, parse_spec
from attrib_batch.spec.methods import EXACT, method_entry
from attrib_batch.storage.store import Store
from attrib_batch.tables import SCHEMA_VERSION, Chunk, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from attrib_batch.execution.planning.inputs import Places

FOLDER = "verification"
CHUNK_PAIRS = 4
"""Pairs in a chunk of the measurement: it costs hundreds of times what the estimate does."""
READ_PAIRS = 4096


@dataclass(frozen=True)
class Verification:
    """A measurement that is ready to run, and what its scores are for."""

    out: Store
    spec: SweepSpec
    """The job whose estimates are checked."""
    prepared: PreparedRun
    measured_by: dict[str, str]
    """For each method of the job, the method of the measurement that measures it."""

    def publish(self) -> list[str]:
        """Write OUT/verification/scores, one partition for each method that was checked; returns the files.

        A method's partition holds its own components only, even where the measurement was shared.
        """
        written = []
        exact = self.prepared.store
        for plan in self.prepared.plan:
            for method, measured_by in self.measured_by.items():
                if measured_by != plan.cell.method:
                    continue
                components = [str(component) for component in self.spec.method(method).components]
                for chunk in plan.chunks():
                    table = exact.read_table(chunk.path(Table.SCORES))
                    mine = pc.is_in(table["component"].cast(pa.string()), pa.array(components))
                    target = Chunk(Cell(plan.cell.model, plan.cell.dataset, method), chunk.start, chunk.stop)
                    written.append(f"{FOLDER}/{target.path(Table.SCORES)}")
                    self.out.write_table(written[-1], table.filter(mine))
        return written


def prepare_verification(
    out: str | Path,
    *,
    n_pairs: int,
    seed: int,
    ndif_host: str | None = None,
    places: Places | None = None,
    workers_here: bool = True,
) -> Verification:
    """Sample pairs that every method scored, and prepare their measurement.

    Args:
        out: a finished or unfinished run's directory.
        n_pairs: pairs to sample from each dataset; a pair and its mirror are sampled together.
        seed: the same seed samples the same pairs.
        ndif_host: as for a run.
        places: where the run's datasets and models lie now, if not where they were.
        workers_here: as for a run.

    Raises:
        RequestError: there is nothing to check, ``out`` was verified with another sample, or an earlier release
            wrote it.
    """
    store = Store.parse(out)
    manifest = read_manifest(store)
    if manifest is None:
        raise OutputError(f"{out} has no {MANIFEST}: it is not the directory of a run")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise RequestError(
            f"{out} was written by an earlier release (schema version {manifest['schema_version']}, this one writes "
            f"{SCHEMA_VERSION}), which may have taken other tokens for answers: what is measured now could not be "
            "compared with its scores. Run the job in another --out and verify that"
        )
    spec = parse_spec(manifest["job"], source=str(store.path(MANIFEST)))
    methods, measured_by = _measurements([method for method in spec.methods if not method_entry(method.kind).measured])
    if not methods:
        raise RequestError(f"{out}: every method of the job is exact already; there is no estimate to check")
    spec = find_inputs(manifest, spec, places)
    samples = {dataset.id: _sample(store, spec, dataset.id, n_pairs=n_pairs, seed=seed) for dataset in spec.datasets}
    data = spec.model_dump(mode="json")
    data["name"] = f"{spec.name}-{FOLDER}"
    data["chunk_pairs"] = CHUNK_PAIRS
    data["methods"] = methods
    data["datasets"] = [{"id": name, "path": path} for name, path in samples.items()]
    exact = parse_spec(data, source=FOLDER)
    try:
        prepared = prepare_run(exact, store.below(f"{FOLDER}/exact"), ndif_host=ndif_host, workers_here=workers_here)
    except ResumeMismatchError as error:
        raise ResumeMismatchError(
            f"{store.path(FOLDER)} holds a verification of another sample or model; remove it to verify anew.\n{error}"
        ) from error
    return Verification(store, spec, prepared, measured_by)


def _measurements(methods: Sequence[MethodSpec]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The fewest exact methods that measure what ``methods`` estimate, and which of them measures which."""
    alike: dict[tuple[str, str], list[MethodSpec]] = defaultdict(list)
    for method in methods:
        alike[method.metric, method.direction].append(method)
    exact, measured_by = [], {}
    for (metric, direction), members in alike.items():
        components = dict.fromkeys(component for method in members for component in method.components)
        name = f"exact-{metric}-{direction}"
        exact.append(
            {"id": name, "kind": EXACT, "components": list(components), "metric": metric, "direction": direction}
        )
        measured_by.update({method.id: name for method in members})
    return exact, measured_by


def _sample(store: Store, job: SweepSpec, dataset: str, *, n_pairs: int, seed: int) -> str:
    """Write the sampled rows of a dataset as a table of their own; returns its path."""
    spec = job.dataset(dataset)
    table = PairTable.open(spec.path, spec.limit)
    units = _scored_units(store, [cell for cell in job.cells if cell.dataset == dataset])
    if not units:
        raise RequestError(
            f"{store.root}: no pair of dataset {dataset} is scored by every method yet; run the job first"
        )
    order = sorted(units)
    random.Random(seed).shuffle(order)  # noqa: S311 - a sample, no secret
    chosen: set[int] = set()
    for unit in order:
        if len(chosen) >= n_pairs:
            break
        chosen |= units[unit]
    rows = (pair for batch in table.batches(READ_PAIRS) for pair in batch if pair.pair_id in chosen)
    name = f"{FOLDER}/pairs/{dataset}.parquet"
    store.write_bytes(name, encode_pairs(rows, id_columns=table.id_columns))
    return str(store.path(name))


def _scored_units(store: Store, cells: Sequence[Cell]) -> dict[tuple[bool, int], set[int]]:
    """Pair ids scored in every one of ``cells``, by sampling unit: their group, or the pair itself."""
    scored = [dict(_scored_pairs(store, cell)) for cell in cells]
    units: dict[tuple[bool, int], set[int]] = defaultdict(set)
    for pair_id, group in scored[0].items():
        if all(pair_id in other for other in scored[1:]):
            units[(group is None, pair_id if group is None else group)].add(pair_id)
    return units


def _scored_pairs(store: Store, cell: Cell) -> Iterator[tuple[int, int | None]]:
    for start, stop in sorted(store.parts(Table.SCORES, cell.partition)):
        rows = store.read_table(Chunk(cell, start, stop).path(Table.BASELINES), ["pair_id", "group"])
        yield from zip(rows["pair_id"].to_pylist(), rows["group"].to_pylist(), strict=True)
