"""What a run's manifest says, as far as reading its tables needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell
from attrib_batch.spec.positions import ALL, check_at
from attrib_batch.storage.store import Store
from attrib_batch.tables import READABLE_SCHEMA_VERSIONS

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "manifest.json"


class _Tolerant(BaseModel):
    # A manifest written by a later release may say more; what it adds must not stop anyone from reading
    # tables.
    model_config = ConfigDict(extra="allow", frozen=True)


class PlanEntry(_Tolerant):
    """What the run set out to compute for one cell of the sweep."""

    model: str
    dataset: str
    method: str
    n_pairs: int
    n_chunks: int

    @property
    def cell(self) -> Cell:
        """The cell's names."""
        return Cell(self.model, self.dataset, self.method)


class RunManifest(_Tolerant):
    """``OUT/manifest.json``: the resolved job, versions, fingerprints and plan of a run."""

    schema_version: int
    run_id: str
    created_at: str
    job: dict[str, Any] = Field(default_factory=dict)
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    plan: tuple[PlanEntry, ...]

    def method(self, name: str) -> dict[str, Any]:
        """Return the job's method of that id as plain data; empty where the job has none."""
        return next((item for item in self.job.get("methods", ()) if item.get("id") == name), {})

    def positions_of(self, method: str) -> str | tuple[str, ...]:
        """Return the positions that a method was asked for; all where its kind knows no other."""
        return check_at(self.method(method).get("at", ALL))


def read_manifest(out: str | Path | Store) -> RunManifest:
    """Read the manifest of the run in ``out``.

    Raises:
        OutputError: ``out`` is not a run's directory, or was written under another table layout.
    """
    store = Store.parse(out)
    try:
        manifest = RunManifest.model_validate_json(store.read_bytes(MANIFEST))
    except FileNotFoundError as error:
        raise OutputError(
            f"{store.root} is not the directory of a run: it has no {MANIFEST}. Name the folder given to --out."
        ) from error
    except ValidationError as error:
        keys = ", ".join(sorted({".".join(map(str, item["loc"])) or "the file" for item in error.errors()}))
        raise OutputError(
            f"{store.path(MANIFEST)} is not a run's manifest: {keys} missing or of the wrong type"
        ) from error
    if manifest.schema_version not in READABLE_SCHEMA_VERSIONS:
        readable = " and ".join(map(str, READABLE_SCHEMA_VERSIONS))
        raise OutputError(
            f"{store.root} holds tables of schema version {manifest.schema_version}; this release reads {readable}. "
            "Read it with the release that wrote it, or run the job again elsewhere."
        )
    return manifest
