"""Where a run's numbers come from, as rows of names and values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

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
    return RunDescription(str(job.get("name", "Run")), manifest.run_id, _time(manifest.created_at), rows)


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
