"""The job file, from the pydantic models that check it."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Literal

from pydantic_core import PydanticUndefined

from attrib_batch.spec import DatasetSpec, MethodSpec, ModelSpec, SweepSpec, VerificationSpec, WorkersSpec
from attrib_batch.spec.base import Strict
from attrib_batch.spec.registries.methods import BUILT_IN_METHODS
from docs.reference.markdown import code, plain, table

if typing.TYPE_CHECKING:
    from pydantic.fields import FieldInfo

SECTIONS: dict[str, type[Strict]] = {
    "The job itself": SweepSpec,
    "models": ModelSpec,
    "models[].workers": WorkersSpec,
    "datasets": DatasetSpec,
    "methods": MethodSpec,
    "verify": VerificationSpec,
}
"""The parts of a job file, by where they stand in it."""


def job_file_page() -> str:
    """Return the page: every key of every part with its type, default and meaning."""
    parts = [
        "# Job file",
        (
            "Every key, from the models that check the file. What a key leads to is in "
            "[Write a job file](../how-to/job-file.md)."
        ),
    ]
    for title, model in SECTIONS.items():
        heading = title if model is SweepSpec else code(title)
        parts += [f"## {heading}", plain(inspect.getdoc(model) or ""), _keys(model)]
        if model is MethodSpec:
            parts += _parameters()
    return "\n\n".join(parts) + "\n"


def _parameters() -> list[str]:
    """Return the keys that one kind of method has beside those of all."""
    parts = []
    for kind, entry in BUILT_IN_METHODS.items():
        if entry.parameters.model_fields:
            parts += [f"### Of `{kind}` alone", _keys(entry.parameters)]
    return parts


def _keys(model: type[Strict]) -> str:
    rows = [
        (code(name), code(type_name(field.annotation)), _default(field), field.description or "")
        for name, field in model.model_fields.items()
    ]
    return table(("key", "type", "default", "meaning"), rows)


def type_name(annotation: Any) -> str:
    """Return a type as a person writes it in YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in arguments if part is not type(None)))
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any"}
    return names.get(annotation) or ("mapping" if issubclass(annotation, Strict) else annotation.__name__.lower())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if field.default_factory is not None or value is PydanticUndefined or isinstance(value, Strict):
        return ""
    if isinstance(value, tuple):
        return code("[" + ", ".join(str(part) for part in value) + "]")
    if value is None:
        return ""
    return code(str(value).lower() if isinstance(value, bool) else str(value))
