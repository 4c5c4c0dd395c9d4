"""The manifest: what a run's directory holds, and whether a job may go on in it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrib_batch._version import __version__
from attrib_batch.errors import OutputError, ResumeMismatchError
from attrib_batch.execution.planning.inputs import NAMED
from attrib_batch.tables import SCHEMA_VERSION, Table, parse_part_name
from attrib_batch.tables.remote_jobs import FOLDER as JOBS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.execution.planning.plan import CellPlan
    from attrib_batch.spec import SweepSpec
    from attrib_batch.storage.store import Store

MANIFEST = "manifest.json"
_PACKAGES = ("torch", "nnsight", "transformers", "ray", "pyarrow", "polars", "numpy", "einops")


def build_manifest(
    spec: SweepSpec,
    plan: Sequence[CellPlan],
    *,
    datasets: dict[str, str],
    models: dict[str, str],
    named: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Everything that is needed to know where a run's numbers come from.

    Args:
        spec: the resolved job.
        plan: its cells.
        datasets: content hash of each dataset, by id.
        models: fingerprint of each model, by name.
        named: paths as the job named them: see `inputs.named_paths`.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": uuid.uuid4().hex[:12],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": spec.model_dump(mode="json"),
        NAMED: named,
        "fingerprint": {
            "spec": spec.identity(),
            "datasets": datasets,
            "models": models,
            "schema_version": SCHEMA_VERSION,
        },
        "versions": versions(),
        "plan": [cell.to_json() for cell in plan],
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; what is not installed is left out."""
    found = {"attrib_batch": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of a run's directory, or None where there is none.

    Raises:
        OutputError: it is there and cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads(store.read_bytes(MANIFEST))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(
            f"{store.path(MANIFEST)} cannot be read as a manifest ({error}); choose another --out"
        ) from error
    return manifest


def check_run(store: Store, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Check that a run may begin or go on in a directory; nothing is written.

    A run of something else that has committed nothing is in nobody's way: its request was refused, or it never came so
    far. A new run takes its place.

    Returns:
        The manifest of the run that goes on, or None for a new run.

    Raises:
        ResumeMismatchError: the directory holds scores of a different job, dataset, model or release.
        OutputError: it holds tables without a manifest.
    """
    existing = read_manifest(store)
    if existing is None:
        for table in Table:
            if store.exists(table):
                raise OutputError(
                    f"{store.path(table)} exists, but there is no {MANIFEST}: this is not the directory of a run. "
                    "Choose another --out."
                )
        return None
    differences = list(_differences(existing.get("fingerprint"), manifest["fingerprint"], ""))
    if not differences:
        return existing
    if not _has_scores(store):
        return None
    if (version := existing.get("schema_version")) != SCHEMA_VERSION:
        raise ResumeMismatchError(
            f"{store.root} holds tables of schema version {version}, and this release writes {SCHEMA_VERSION}. Choose "
            "another --out; status, summarize and report go on reading this one."
        )
    raise ResumeMismatchError(
        f"{store.root} holds a run of something else. What differs:\n"
        + "\n".join(f"  {line}" for line in differences)
        + "\nRun the job as it was to resume it, or choose another --out."
    )


def open_run(store: Store, manifest: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Write the manifest of a new run, or check that it matches the one that is there.

    Returns:
        The manifest in force, and whether the run goes on from an earlier one.

    Raises:
        ResumeMismatchError: as for :func:`check_run`.
        OutputError: likewise, or the directory cannot be written.
    """
    existing = check_run(store, manifest)
    if existing is not None:
        return existing, True
    # Of a run whose place this one takes: tables whose commit never came, and jobs that a server may still do.
    for folder in (*Table, JOBS):
        for file in store.list(folder, recursive=True):
            store.remove(file.relative)
    store.write_bytes(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest, False


def _has_scores(store: Store) -> bool:
    """Return whether any chunk is committed."""
    return any(parse_part_name(file.name) for file in store.list(Table.SCORES, recursive=True))


def _differences(before: object, now: object, where: str) -> Iterator[str]:
    """Every leaf in which two fingerprints differ, as one line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{where}[{index}]")
    elif before != now:
        yield f"{where}: was {_short(before)}, is now {_short(now)}"


def _short(value: object) -> str:
    return "absent" if value is None else json.dumps(value)
