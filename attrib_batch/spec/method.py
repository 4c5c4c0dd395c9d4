"""One way of scoring of a sweep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from attrib_batch.spec.base import PartitionName, Strict
from attrib_batch.spec.cell import Component
from attrib_batch.spec.registries.methods import (
    BUILT_IN_METHODS,
    GradientAt,
    built_in_parameters,
    check_method_kind,
    find_method_entry,
    method_entry,
)
from attrib_batch.spec.registries.metrics import check_metric_name, metric_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MethodKind = Annotated[str, AfterValidator(check_method_kind)]
MetricName = Annotated[str, AfterValidator(check_metric_name)]
Direction = Literal["denoise", "noise"]


class MethodSpec(Strict):
    """One way of scoring.

    Keys that only some kinds have, such as ``ig_steps``, stand beside these fields; see `parameters`.
    """

    # What is no field is a parameter of the kind, which the validators below check.
    model_config = ConfigDict(extra="allow")

    id: PartitionName = Field(description="its name in the tables")
    kind: MethodKind = Field(description="the method; may be left out where id is one's name")
    components: tuple[Component, ...] = Field((Component.Z,), min_length=1, description="what is attributed")
    metric: MetricName = Field("logit_diff", description="what is measured at the last position, by name")
    direction: Direction = Field("denoise", description="denoise: clean into corrupted; noise: the mirror")

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The values of the parameters that its kind has beside the fields of every method."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="before")
    @classmethod
    def _check_parameters(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {"kind": data.get("id"), **data}
        entry = find_method_entry(data["kind"]) if isinstance(data["kind"], str) else None
        if entry is None:
            return {name: data[name] for name in data if name in cls.model_fields}  # the kind is what is wrong
        given = {name: value for name, value in data.items() if name not in cls.model_fields}
        for name, kinds in built_in_parameters().items():
            if name not in given or name in entry.parameters.model_fields:
                continue
            if given[name] is not None:
                raise ValueError(f"{name} is for kind {' and '.join(kinds)}; kind is {entry.kind}")
            del given[name]  # an earlier release wrote null for what a kind does not have
        checked = entry.parameters.model_validate(given).model_dump()
        return {name: data[name] for name in data if name in cls.model_fields} | checked

    @model_validator(mode="after")
    def _metric_has_a_gradient(self) -> Self:
        if (
            self.direction == "noise"
            and metric_entry(self.metric).flat_on_clean
            and method_entry(self.kind).gradient_at is GradientAt.BASE
        ):
            others = [kind for kind, entry in BUILT_IN_METHODS.items() if entry.gradient_at is not GradientAt.BASE]
            raise ValueError(
                f"metric {self.metric} is at its minimum on the clean prompt, where {self.kind} with direction noise "
                f"takes its gradients: every score would be 0; use direction denoise, or kind {' or '.join(others)}"
            )
        return self

    @model_validator(mode="after")
    def _scores_add_over_whole_answers(self) -> Self:
        if metric_entry(self.metric).whole_answers and not method_entry(self.kind).adds_over_answers:
            others = [kind for kind, entry in BUILT_IN_METHODS.items() if entry.adds_over_answers]
            raise ValueError(
                f"metric {self.metric} is a sum over answers that are passed through the model one by one, and scores "
                f"of kind {self.kind} do not add up over them; use kind {' or '.join(others)}, or metric logit_diff "
                "with answers of one token"
            )
        return self

    @model_validator(mode="after")
    def _no_component_twice(self) -> Self:
        twice = [str(c) for c, n in Counter(self.components).items() if n > 1]
        if twice:
            raise ValueError(f"components lists {', '.join(twice)} more than once")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the keys that the stored numbers depend on."""
        return self.model_dump(mode="json", exclude={"id"}, exclude_none=True)


def share_forward_passes(methods: Iterable[MethodSpec]) -> list[tuple[MethodSpec, ...]]:
    """Group methods by what is computed in the same forward passes; groups of kinds that share come first."""
    groups: dict[str, list[MethodSpec]] = {}
    for method in sorted(methods, key=lambda method: not method_entry(method.kind).shares_forward_passes):
        groups.setdefault(forward_group(method), []).append(method)
    return [tuple(group) for group in groups.values()]


def forward_group(method: MethodSpec) -> str:
    """Return a name that methods of a job have in common if and only if they share forward passes."""
    # No id has a space.
    if not method_entry(method.kind).shares_forward_passes:
        return method.id
    # Behind prompts stand answers, for some metrics.
    return f"kind {method.kind}{' with whole answers' if reads_whole_answers(method) else ''}"


def reads_whole_answers(method: MethodSpec) -> bool:
    """Return whether a method's metric reads whole answers; methods that share forward passes agree in it."""
    return metric_entry(method.metric).whole_answers
