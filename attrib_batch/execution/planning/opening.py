"""Before a run: check the request against the datasets, the models and the output, and write the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.errors import OutputError
from attrib_batch.execution.planning.inputs import named_paths
from attrib_batch.execution.planning.paths import with_absolute_paths, with_ndif_host
from attrib_batch.execution.planning.plan import boundaries_of, has_scores_in, uncommitted
from attrib_batch.execution.planning.reference import MeanActivations
from attrib_batch.execution.planning.request import check_models, check_tokenizers, find_fingerprints, open_tables
from attrib_batch.execution.planning.stages import OpenRun, Scoring
from attrib_batch.execution.planning.verification import Verification
from attrib_batch.storage.lease import Lease
from attrib_batch.storage.remote_jobs import FOLDER as JOBS
from attrib_batch.storage.store import Store
from attrib_batch.tables import MANIFEST, Manifest, Table, find_manifest
from attrib_batch.tables.growth import grow_manifest
from attrib_batch.tables.manifest import build_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.spec import SweepSpec
    from attrib_batch.tables.plan import Boundaries


def open_run(
    spec: SweepSpec,
    out: str | Path | Store,
    *,
    ndif_host: str | None = None,
    retry_failures: bool = False,
    workers_here: bool = True,
    given: Mapping[str, LoadedModel] | None = None,
) -> OpenRun:
    """Check everything that can be checked before a worker starts, take the lease, and write the manifest.

    Args:
        spec: the job.
        out: the run's directory.
        ndif_host: the NDIF server of every model that lies on one, whatever the job says.
        retry_failures: have committed chunks with pairs in failures computed again.
        workers_here: whether the workers will run on this machine, so that its devices are theirs.
        given: models that are in memory already, by name; the others are found by their id.

    Raises:
        RequestError: the datasets, models or output do not allow the job, it does not match what is there, or another
            driver is at work there.
    """
    store = Store.parse(out).resolved()
    if isinstance(store.root, Path) and store.root.exists() and not store.root.is_dir():
        raise OutputError(f"--out {store.root} is a file; name a folder")
    existing = find_manifest(store)
    asked, spec = spec, with_ndif_host(with_absolute_paths(spec, existing), ndif_host)
    verification, means = Verification.of(spec), MeanActivations.of(spec)
    tables = open_tables(spec)
    for table in tables.values():
        table.check_ids()
    fingerprints = {name: table.fingerprint() for name, table in tables.items()}
    sources, models = find_fingerprints(spec, given or {})
    boundaries = boundaries_of(tables)
    manifest = build_manifest(
        spec,
        n_pairs={name: table.n_rows for name, table in tables.items()},
        datasets=fingerprints,
        models=models,
        named=named_paths(asked, spec),
        boundaries=boundaries,
    )
    grown = _grown(store, existing, manifest, boundaries)
    cells = set(spec.cells)
    plans = [plan for plan in grown.plan if plan.cell in cells]
    verified = verification is None or verification.is_committed(store, grown, spec)
    if not verified or uncommitted(store, plans, retry_failures=retry_failures):
        check_models(spec, sources, workers_here=workers_here, given=given or {})
        check_tokenizers(spec, sources, tables, given or {})
    lease = Lease.take(store)
    try:
        # Another driver may have been there since.
        existing = find_manifest(store)
        grown = _grown(store, existing, manifest, boundaries)
        if means is not None:
            # Refused before anything is written, or the job as it was could not go on either.
            means.entry(spec, store, grown, tables)
        run = OpenRun(
            spec=spec,
            store=store,
            manifest=grown,
            lease=lease,
            # Of a local file they are the same, and it has just been hashed.
            pins={name: fingerprints[name] if table.is_local else table.pin() for name, table in tables.items()},
            resumed=existing is not None and existing.run_id == grown.run_id,
            retry_failures=retry_failures,
            stages=tuple(stage for stage in (means, Scoring(), verification) if stage),
        )
        if not run.resumed:
            _clear(store)
        if existing != grown:
            run.write_manifest(grown)
    except BaseException:
        lease.release()
        raise
    return run


def _grown(store: Store, existing: Manifest | None, asked: Manifest, boundaries: Boundaries) -> Manifest:
    """Return the manifest with which a job begins or goes on in a directory; nothing is written.

    Raises:
        ResumeMismatchError: the directory holds scores of a different job, dataset, model or release.
        OutputError: it holds tables without a manifest.
    """
    if existing is None:
        for table in Table:
            if store.exists(table):
                raise OutputError(
                    f"{store.path(table)} exists, but there is no {MANIFEST}: this is not the directory of a run. "
                    "Choose another --out."
                )
        return asked

    return grow_manifest(existing, asked, has_scores_in(store), store.root, boundaries)


def _clear(store: Store) -> None:
    """Remove what an earlier run without scores left: tables without their commit, and jobs on NDIF servers."""
    for folder in (*Table, JOBS):
        for file in store.list(folder, recursive=True):
            store.remove(file.relative)
