"""Read and check a job file; every error names the key and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from attrib_batch.errors import JobError
from attrib_batch.spec.dataset import DatasetSpec
from attrib_batch.spec.method import MethodSpec
from attrib_batch.spec.model import ModelSpec
from attrib_batch.spec.registries.methods import built_in_parameters
from attrib_batch.spec.sweep import SweepSpec
from attrib_batch.spec.verification import VerificationSpec
from attrib_batch.spec.workers import WorkersSpec

if TYPE_CHECKING:
    from pydantic import BaseModel


def load_spec(path: str | Path) -> SweepSpec:
    """Read a job file.

    Raises:
        JobError: naming the file, the key and what was expected.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return parse_spec(data, source=str(path))


def parse_spec(data: object, *, source: str) -> SweepSpec:
    """Check a job's data; ``source`` names it in messages.

    Raises:
        JobError: naming the key and what was expected.
    """
    if not isinstance(data, dict):
        raise JobError(f"{source}: a job is a mapping with the keys {', '.join(SweepSpec.model_fields)}")
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{source}: " + "\n".join(_explain(item) for item in _root_causes(error.errors()))) from error


def _root_causes(items: list[Any]) -> list[Any]:
    """Drop 'list is empty' errors that only follow from errors in the list's items."""
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(other["loc"][: len(item["loc"])] == item["loc"] for other in items if other is not item)
    ]


def _explain(item: Any) -> str:
    """Write one pydantic error as a sentence: the key, what was expected, what stands there."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    owner = _owner(item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; known here: {', '.join(_known_keys(owner))}"
    if item["type"] == "missing":
        field = owner.model_fields[item["loc"][-1]]
        return f"{key}: missing; expected {field.description}"
    message: str = item["msg"].removeprefix("Value error, ")
    if not key:
        return message
    got = item["input"]
    return f"{key}: {message}" + (f", not {got!r}" if isinstance(got, str | int | float | bool | None) else "")


def _known_keys(owner: type[BaseModel]) -> list[str]:
    return [*owner.model_fields, *(built_in_parameters() if owner is MethodSpec else ())]


def _owner(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Find the model class in which the last key of ``loc`` stands."""
    owners: dict[str, type[BaseModel]] = {
        "models": ModelSpec,
        "datasets": DatasetSpec,
        "methods": MethodSpec,
        "workers": WorkersSpec,
        "verify": VerificationSpec,
    }
    named = [owners[part] for part in loc[:-1] if isinstance(part, str) and part in owners]
    return named[-1] if named else SweepSpec
