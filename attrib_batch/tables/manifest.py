"""The manifest: what a run's directory holds, and what its numbers depend on.

The numbers of a cell depend on a model, a dataset, a method and a few settings of the whole job. What each of these is,
as far as numbers go, is its *identity*. A cell's *fingerprint* is a hash of its four identities and the version of the
tables. How many workers there are, where files lie and what the job is called is in no identity.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, ValidationError, model_validator

from attrib_batch._version import __version__
from attrib_batch.errors import OutputError
from attrib_batch.spec.positions import ALL, check_at
from attrib_batch.spec.registries.methods import EXACT
from attrib_batch.tables.plan import CellPlan, Tolerant, no_groups
from attrib_batch.tables.schema import READABLE_SCHEMA_VERSIONS, SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from attrib_batch.spec import SweepSpec
    from attrib_batch.tables.plan import Boundaries

MANIFEST = "manifest.json"
MANIFEST_VERSION = 3
"""Raised whenever a key of the manifest changes its meaning. Version 1 had one fingerprint for the whole job, version 2
chunks of one size in a segment."""
SCORING, VERIFICATION, REFERENCE = "scoring", "verification", "reference"
"""The stages of a plan, by name."""
_PACKAGES = ("torch", "nnsight", "transformers", "ray", "pyarrow", "polars", "numpy", "einops")

Identity = dict[str, Any]


class Directory(Protocol):
    """What the manifest needs of a run's directory."""

    def read_bytes(self, relative: str) -> bytes:
        """Return a file's content."""
        ...

    def write_bytes(self, relative: str, data: bytes) -> int:
        """Commit a file."""
        ...

    def path(self, relative: str) -> object:
        """Return where a person finds a file."""
        ...


class Identities(Tolerant):
    """What numbers depend on, by name."""

    models: dict[str, Identity] = Field(default_factory=dict)
    datasets: dict[str, Identity] = Field(default_factory=dict)
    methods: dict[str, Identity] = Field(default_factory=dict)
    settings: Identity = Field(default_factory=dict)

    def fingerprint(self, plan: CellPlan, schema_version: int) -> str:
        """Return the fingerprint of a cell of these models, datasets and methods."""
        parts = [
            self.models.get(plan.model),
            self.datasets.get(plan.dataset),
            self.methods.get(plan.method),
            self.settings,
            schema_version,
        ]
        return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"


class StageEntry(Tolerant):
    """A stage of the plan: chunks that may be computed once the stages that it needs are committed."""

    name: str
    needs: tuple[str, ...] = ()
    folder: str = ""
    """Where its tables lie in the run's directory; empty for the directory itself."""
    cells: tuple[CellPlan, ...] = ()
    identities: Identities = Field(default_factory=Identities)
    job: dict[str, Any] = Field(default_factory=dict)
    """What of the job is the stage's own: its methods and datasets. Empty for the stage that the job itself names."""

    def plan(self, cell: object) -> CellPlan | None:
        """Return the plan of a cell, None where the stage has no such cell."""
        return next((plan for plan in self.cells if plan.cell == cell), None)


class Manifest(Tolerant):
    """``OUT/manifest.json``: the resolved job, identities, versions and plan of a run."""

    manifest_version: int = 1
    schema_version: int
    run_id: str
    created_at: str
    job: dict[str, Any] = Field(default_factory=dict)
    named: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Paths as the job named them: ``{"datasets": {id: path}, "models": {name: path}}``."""
    versions: dict[str, Any] = Field(default_factory=dict)
    stages: tuple[StageEntry, ...]

    @model_validator(mode="before")
    @classmethod
    def _read_earlier(cls, data: Any) -> Any:
        """Read version 1, which had one plan and one fingerprint."""
        if not isinstance(data, dict) or "stages" in data or "plan" not in data:
            return data
        identities = _earlier_identities(data.get("fingerprint"))
        return {**data, "stages": [{"name": SCORING, "cells": data["plan"], "identities": identities}]}

    @property
    def scoring(self) -> StageEntry:
        """The stage that computes what the job names."""
        return self.stages[0]

    @property
    def plan(self) -> tuple[CellPlan, ...]:
        """The cells of the job."""
        return self.scoring.cells

    def stage(self, name: str) -> StageEntry | None:
        """Return the stage of that name, None where there is none."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def with_stage(self, stage: StageEntry) -> Manifest:
        """Return the manifest with a stage in place of the one of its name, or behind all others."""
        others = [known for known in self.stages if known.name != stage.name]
        at = next((i for i, known in enumerate(self.stages) if known.name == stage.name), len(others))
        return self.model_copy(update={"stages": (*others[:at], stage, *others[at:])})

    def method(self, name: str) -> dict[str, Any]:
        """Return the job's method of that id as plain data; empty where the job has none."""
        return next((item for item in self.job.get("methods", ()) if item.get("id") == name), {})

    def positions_of(self, method: str) -> str | tuple[str, ...]:
        """Return the positions that a method was asked for; all where its kind knows no other."""
        return check_at(self.method(method).get("at", ALL))

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        data = self.model_dump(mode="json", exclude={"stages"})
        stages = [
            {**stage.model_dump(mode="json", exclude={"cells"}), "cells": [plan.to_json() for plan in stage.cells]}
            for stage in self.stages
        ]
        return (json.dumps({**data, "stages": stages}, indent=2) + "\n").encode()


def build_manifest(
    spec: SweepSpec,
    *,
    n_pairs: Mapping[str, int],
    datasets: Mapping[str, str],
    models: Mapping[str, str],
    named: dict[str, dict[str, str]],
    boundaries: Boundaries = no_groups,
) -> Manifest:
    """Build the manifest of a job that begins anew.

    Args:
        spec: the resolved job.
        n_pairs: pairs of each dataset, by id, the job's limit applied.
        datasets: content hash of each dataset, by id.
        models: fingerprint of each model, by name.
        named: paths as the job named them.
        boundaries: which boundaries of chunks would split a group.
    """
    identities = identities_of(spec, datasets=datasets, models=models)
    plans = [CellPlan.of(cell, n_pairs[cell.dataset], spec.chunk_pairs, boundaries) for cell in spec.cells]
    return Manifest(
        manifest_version=MANIFEST_VERSION,
        schema_version=SCHEMA_VERSION,
        run_id=uuid.uuid4().hex[:12],
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        job=spec.model_dump(mode="json"),
        named=named,
        versions=versions(),
        stages=(StageEntry(name=SCORING, cells=with_fingerprints(plans, identities), identities=identities),),
    )


def identities_of(spec: SweepSpec, *, datasets: Mapping[str, str], models: Mapping[str, str]) -> Identities:
    """Return the identities of a job's models, datasets and methods; arguments as for `build_manifest`."""
    return Identities(
        models={model.name: {"weights": models[model.name], **model.identity()} for model in spec.models},
        datasets={dataset.id: {"content": datasets[dataset.id]} for dataset in spec.datasets},
        methods={method.id: method.identity() for method in spec.methods},
        settings=spec.settings(),
    )


def with_fingerprints(
    plans: Iterable[CellPlan], identities: Identities, schema_version: int = SCHEMA_VERSION
) -> tuple[CellPlan, ...]:
    """Return plans with their cells' fingerprints."""
    return tuple(
        plan.model_copy(update={"fingerprint": identities.fingerprint(plan, schema_version)}) for plan in plans
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on, as far as they are installed."""
    found = {"attrib_batch": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def find_manifest(directory: Directory) -> Manifest | None:
    """Read the manifest of a directory; None where there is none.

    Raises:
        OutputError: it cannot be read, or was written under another table layout.
    """
    path = directory.path(MANIFEST)
    try:
        manifest = Manifest.model_validate_json(directory.read_bytes(MANIFEST))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        keys = ", ".join(sorted({".".join(map(str, item["loc"])) or "the file" for item in error.errors()}))
        raise OutputError(
            f"{path} is not a run's manifest: {keys} missing or of the wrong type. Name the folder given to --out, or "
            "choose another"
        ) from error
    if manifest.schema_version not in READABLE_SCHEMA_VERSIONS or manifest.manifest_version > MANIFEST_VERSION:
        readable = " and ".join(map(str, READABLE_SCHEMA_VERSIONS))
        raise OutputError(
            f"{path} tells of tables of schema version {manifest.schema_version} (manifest version "
            f"{manifest.manifest_version}); this release reads {readable} (manifest versions up to "
            f"{MANIFEST_VERSION}). "
            "Read it with the release that wrote it, or run the job again elsewhere."
        )
    return manifest


def read_manifest(directory: Directory) -> Manifest:
    """Read the manifest of a run's directory.

    Raises:
        OutputError: the directory is not that of a run, or its manifest cannot be read.
    """
    manifest = find_manifest(directory)
    if manifest is None:
        raise OutputError(
            f"{directory.path('')} is not the directory of a run: it has no {MANIFEST}. Name the folder given to --out."
        )
    return manifest


def _earlier_identities(fingerprint: Any) -> dict[str, Any]:
    """Return the identities that a fingerprint of version 1 states."""
    if not isinstance(fingerprint, dict):
        return {}
    models, datasets = fingerprint.get("models", {}), fingerprint.get("datasets", {})
    spec = fingerprint.get("spec")
    if not isinstance(spec, dict):
        spec = {"models": [{"name": name} for name in models]}

    def without(item: dict[str, Any], name: str) -> dict[str, Any]:
        return {key: value for key, value in item.items() if key != name and value is not None}

    return {
        "models": {
            item["name"]: {"weights": models.get(item["name"]), **without(item, "name")}
            for item in spec.get("models", ())
        },
        "datasets": {name: {"content": content} for name, content in datasets.items()},
        "methods": {
            # What a method could not be asked for yet, it did for all positions.
            item["id"]: ({"at": ALL} if item.get("kind") == EXACT else {}) | without(item, "id")
            for item in spec.get("methods", ())
        },
        "settings": {"allow_boundary": spec.get("allow_boundary", False)},
    }
