"""Before a run: check the request against the datasets, the models and the output, and plan it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import OutputError
from attrib_batch.execution.planning.inputs import named_paths
from attrib_batch.execution.planning.manifest import build_manifest, check_run, open_run, read_manifest
from attrib_batch.execution.planning.plan import CellPlan, Task, plan_cells, tasks_by_model
from attrib_batch.execution.planning.request import check_models, find_models
from attrib_batch.pairs.reading.files import resolve_path
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import parse_spec
from attrib_batch.storage.lease import Lease
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table

if TYPE_CHECKING:
    from attrib_batch.spec import SweepSpec


@dataclass(frozen=True)
class PreparedRun:
    """A checked request: the job with absolute paths, its plan, and what is still to be done."""

    spec: SweepSpec
    store: Store
    manifest: dict[str, Any]
    plan: list[CellPlan]
    waiting: dict[str, list[Task]]
    """What is not committed yet, by model."""
    n_committed_pairs: int
    resumed: bool
    lease: Lease
    """Held until the run ends."""

    fingerprints: dict[str, str]
    """By dataset id, what workers compare with what they find: see `PairTable.pin`."""


def prepare_run(
    spec: SweepSpec,
    out: str | Path | Store,
    *,
    ndif_host: str | None = None,
    retry_failures: bool = False,
    workers_here: bool = True,
) -> PreparedRun:
    """Check everything that can be checked before a worker starts, take the lease, and write the manifest.

    Args:
        spec: the job.
        out: the run's directory.
        ndif_host: the NDIF server of every model that lies on one, whatever the job says.
        retry_failures: have committed chunks with pairs in failures computed again.
        workers_here: whether the workers will run on this machine, so that its devices are theirs.

    Raises:
        RequestError: the datasets, models or output do not allow the job, it does not match what is there, or another
            driver is at work there.
    """
    store = Store.parse(out).resolved()
    if isinstance(store.root, Path) and store.root.exists() and not store.root.is_dir():
        raise OutputError(f"--out {store.root} is a file; name a folder")
    asked, spec = spec, with_ndif_host(with_absolute_paths(spec, read_manifest(store)), ndif_host)
    tables = {dataset.id: PairTable.open(dataset.path, dataset.limit) for dataset in spec.datasets}
    for table in tables.values():
        table.check_ids()
    fingerprints = {name: table.fingerprint() for name, table in tables.items()}
    # Of a local file they are the same, and it has just been hashed.
    pins = {name: fingerprints[name] if table.is_local else table.pin() for name, table in tables.items()}
    plan = plan_cells(spec, {name: table.n_rows for name, table in tables.items()})
    sources = find_models(spec)
    manifest = build_manifest(
        spec,
        plan,
        datasets=fingerprints,
        models={name: source.fingerprint for name, source in sources.items()},
        named=named_paths(asked, spec),
    )
    if check_run(store, manifest) is None or uncommitted(store, plan, retry_failures=retry_failures):
        check_models(spec, sources, workers_here=workers_here)
    lease = Lease.take(store)
    try:
        manifest, resumed = open_run(store, manifest)
        waiting = uncommitted(store, plan, retry_failures=retry_failures)
    except BaseException:
        lease.release()
        raise
    n_pairs = sum(cell_plan.n_pairs for cell_plan in plan)
    return PreparedRun(
        spec=spec,
        store=store,
        manifest=manifest,
        plan=plan,
        waiting=tasks_by_model(spec, plan, waiting),
        n_committed_pairs=n_pairs - sum(chunk.n_pairs for chunk in waiting),
        resumed=resumed,
        lease=lease,
        fingerprints=pins,
    )


def uncommitted(store: Store, plan: list[CellPlan], *, retry_failures: bool = False) -> set[Chunk]:
    """The chunks that are to be computed: those without a scores file, and on request those with failures."""
    waiting: set[Chunk] = set()
    for cell_plan in plan:
        committed = store.parts(Table.SCORES, cell_plan.cell.partition)
        if retry_failures:
            committed -= store.parts(Table.FAILURES, cell_plan.cell.partition)
        waiting.update(chunk for chunk in cell_plan.chunks() if (chunk.start, chunk.stop) not in committed)
    return waiting


def with_absolute_paths(spec: SweepSpec, earlier: dict[str, Any] | None = None) -> SweepSpec:
    """The job with dataset paths and local model folders made absolute: workers run in other folders.

    Datasets of the Hub are pinned to a commit: to that of the manifest of an earlier execution, if there is one.
    """
    data = spec.model_dump(mode="json")
    before = {dataset["id"]: dataset["path"] for dataset in (earlier or {}).get("job", {}).get("datasets", ())}
    for dataset in data["datasets"]:
        dataset["path"] = resolve_path(dataset["path"], before.get(dataset["id"]))
    for model in data["models"]:
        if Path(model["id"]).expanduser().is_dir():
            model["id"] = str(Path(model["id"]).expanduser().resolve())
    return type(spec).model_validate(data)


def with_ndif_host(spec: SweepSpec, host: str | None) -> SweepSpec:
    """The job with the NDIF server of each model that lies on one: ``host``, the job's own, or the environment's."""
    data = spec.model_dump(mode="json")
    for model in data["models"]:
        if model["workers"]["kind"] == "ndif":
            model["workers"]["host"] = host or model["workers"]["host"] or os.environ.get("NDIF_HOST")
    return parse_spec(data, source="--ndif-host" if host else "NDIF_HOST")
