"""Make the paths and servers of a job the same for every worker, wherever it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.pairs.reading.files import resolve_path
from attrib_batch.spec import parse_spec

if TYPE_CHECKING:
    from attrib_batch.spec import SweepSpec
    from attrib_batch.tables import Manifest


def with_absolute_paths(spec: SweepSpec, earlier: Manifest | None = None) -> SweepSpec:
    """Return the job with dataset paths and local model folders made absolute: workers run in other folders.

    Datasets of the Hub are pinned to a commit: to that of the manifest of an earlier execution, if there is one.
    """
    data = spec.model_dump(mode="json")
    before = {dataset["id"]: dataset["path"] for dataset in earlier.job.get("datasets", ())} if earlier else {}
    for dataset in data["datasets"]:
        dataset["path"] = resolve_path(dataset["path"], before.get(dataset["id"]))
    for model in data["models"]:
        if Path(model["id"]).expanduser().is_dir():
            model["id"] = str(Path(model["id"]).expanduser().resolve())
    return type(spec).model_validate(data)


def with_ndif_host(spec: SweepSpec, host: str | None) -> SweepSpec:
    """Return the job with the NDIF server of each model that lies on one: ``host``, the job's, or the environment's."""
    data = spec.model_dump(mode="json")
    for model in data["models"]:
        if model["workers"]["kind"] == "ndif":
            model["workers"]["host"] = host or model["workers"]["host"] or os.environ.get("NDIF_HOST")
    return parse_spec(data, source="--ndif-host" if host else "NDIF_HOST")
