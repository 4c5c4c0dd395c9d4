"""Where a run's numbers come from, as rows of names and values."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from attrib_batch.spec import SweepSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from attrib_batch.tables import Manifest

_MODEL_KEYS = ("id", "revision", "dtype", "attention", "prepend_bos")
_DATASET_KEYS = ("path", "limit")
_METHOD_KEYS = ("kind", "components", "metric", "direction")
"""Of every method; after them stand the parameters of its kind."""


@dataclass(frozen=True)
class RunDescription:
    """What the page says about the run as a whole."""

    name: str
    run_id: str
    started: str
    rows: list[tuple[str, str]]
    """Names and values, in the order in which they are shown."""
    command: str
    """What computes the run again, given the job file."""
    job_file: str
    """The job as YAML."""


def describe_run(manifest: Manifest) -> RunDescription:
    """Describe a run by its manifest."""
    job = manifest.job
    rows = [("run", manifest.run_id), ("started", _time(manifest.created_at))]
    rows += [(f"model {item.get('name')}", _listed(item, _MODEL_KEYS)) for item in job.get("models", ())]
    rows += [(f"dataset {item.get('id')}", _listed(item, _DATASET_KEYS)) for item in job.get("datasets", ())]
    rows += [(f"method {item.get('id')}", _listed(item, _method_keys(item))) for item in job.get("methods", ())]
    for entry in manifest.plan:
        rows.append((f"plan {entry.cell}", f"pairs {entry.n_pairs:,}, chunks {entry.n_chunks:,}"))
    known = manifest.scoring.identities
    rows += [(f"fingerprint of model {name}", str(identity.get("weights"))) for name, identity in known.models.items()]
    rows += [
        (f"fingerprint of dataset {name}", str(identity.get("content"))) for name, identity in known.datasets.items()
    ]
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())))
    rows.append(("table schema", f"version {manifest.schema_version}"))
    name = str(job.get("name", "Run"))
    command = "\n".join(_commands(manifest))
    return RunDescription(name, manifest.run_id, _time(manifest.created_at), rows, command, _job_file(manifest))


def _commands(manifest: Manifest) -> list[str]:
    """Return the commands that compute the run and this page again, into a folder of another name."""
    release = manifest.versions.get("attrib_batch")
    install = [f"pip install 'attrib_batch[run]=={release}'"] if release else []
    return [*install, "attrib-batch run job.yaml --out runs/again", "attrib-batch report runs/again"]


def _job_file(manifest: Manifest) -> str:
    """Write the job as a job file, with paths as the job named them and without keys at their defaults."""
    job = _stated(manifest.job)
    for item in job.get("datasets", ()):
        item["path"] = manifest.named.get("datasets", {}).get(item.get("id"), item.get("path"))
    for item in job.get("models", ()):
        item["id"] = manifest.named.get("models", {}).get(item.get("name"), item.get("id"))
    # A job of another release, or with a method that is not installed here, is shown in full.
    with suppress(ValidationError):
        job = SweepSpec.model_validate(job).model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=100)


def _stated(value: Any) -> Any:
    """Drop what is not set: a job file has no key for it."""
    if isinstance(value, dict):
        return {str(key): _stated(item) for key, item in value.items() if item is not None}
    return [_stated(item) for item in value] if isinstance(value, list | tuple) else value


def _method_keys(item: Mapping[str, Any]) -> list[str]:
    return [*_METHOD_KEYS, *(key for key in item if key not in {"id", *_METHOD_KEYS})]


def _listed(item: Mapping[str, Any], keys: Iterable[str]) -> str:
    """List the item's values for the keys it has, such as ``dtype float32, prepend_bos false``."""
    shown = [(key, item[key]) for key in keys if item.get(key) is not None]
    return ", ".join(f"{key} {_value(value)}" for key, value in shown)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " + ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _time(text: str) -> str:
    """Write an ISO time for reading; leave a text that is none as it is."""
    try:
        return f"{datetime.fromisoformat(text):%d %B %Y, %H:%M %Z}".strip().removesuffix(",")
    except ValueError:
        return text
