"""One way of scoring of a sweep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, Self

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
ReferenceName = Literal["corrupted", "zero", "mean"]
CORRUPTED: Final = "corrupted"
ZERO: Final = "zero"
MEAN: Final = "mean"


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
    reference: ReferenceName = Field(
        CORRUPTED,
        description="what activations are replaced by: those of the other prompt, zeros, or their mean over the "
        "dataset's clean prompts by role; zero and mean patch the clean prompt, which is direction noise",
    )

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
        if data.get("reference") in {ZERO, MEAN}:
            data = {"direction": "noise", **data}
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
            denoise = "direction denoise, or " if self.reference == CORRUPTED else ""
            raise ValueError(
                f"metric {self.metric} is at its minimum on the clean prompt, where {self.kind} with direction noise "
                f"takes its gradients: every score would be 0; use {denoise}kind {' or '.join(others)}"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_one_that_it_takes(self) -> Self:
        if self.reference == CORRUPTED:
            return self
        if not method_entry(self.kind).takes_references:
            others = [kind for kind, entry in BUILT_IN_METHODS.items() if entry.takes_references]
            raise ValueError(
                f"kind {self.kind} knows no reference but {CORRUPTED}; for {self.reference} use kind "
                f"{' or '.join(others)}"
            )
        if self.direction == "denoise":
            raise ValueError(
                f"reference {self.reference} patches the clean prompt, which is direction noise; there is no prompt "
                "to restore it in: leave direction out"
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
        # Earlier releases knew no other reference, and what they scored goes on.
        default = {"reference"} if self.reference == CORRUPTED else set()
        return self.model_dump(mode="json", exclude={"id"} | default, exclude_none=True)


def reference_of(method: Mapping[str, Any]) -> str:
    """Return the reference of a job's method as plain data; earlier releases knew one, and did not write it."""
    return str(method.get("reference", CORRUPTED))


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
    reading = Reading.of(method)
    answers = " with whole answers" if reading.whole_answers else ""
    return f"kind {method.kind}{answers}{'' if reading.against_corrupted else ' of clean prompts'}"


class Reading(NamedTuple):
    """How the pairs of a table are read for a method; those that share forward passes agree in it."""

    whole_answers: bool = False
    """Whether an answer is all its tokens; otherwise it must be one."""
    against_corrupted: bool = True
    """Whether pairs have a corrupted prompt; otherwise the clean one is compared with nothing else."""

    @classmethod
    def of(cls, method: MethodSpec) -> Reading:
        """Return how a method reads them."""
        return cls(metric_entry(method.metric).whole_answers, method.reference == CORRUPTED)

    def __str__(self) -> str:
        """Return what is particular to it, for people; empty for nothing."""
        parts = ["whole answers"] if self.whole_answers else []
        return ", ".join(parts if self.against_corrupted else [*parts, "clean prompts alone"])
