"""One way of scoring of a sweep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from attrib_batch.spec.base import PartitionName, Strict
from attrib_batch.spec.cell import Component
from attrib_batch.spec.metric_names import check_metric_name

if TYPE_CHECKING:
    from collections.abc import Iterable

MetricName = Annotated[str, AfterValidator(check_metric_name)]
MethodKind = Literal["atp", "atp_ig", "atp_star", "exact"]
Direction = Literal["denoise", "noise"]

DEFAULT_IG_STEPS = 8


class MethodSpec(Strict):
    """One way of scoring."""

    id: PartitionName = Field(description="its name in the tables")
    kind: MethodKind = Field(description="the method; may be left out where id is one's name")
    components: tuple[Component, ...] = Field((Component.Z,), min_length=1, description="what is attributed")
    metric: MetricName = Field("logit_diff", description="what is measured at the last position, by name")
    direction: Direction = Field("denoise", description="denoise: clean into corrupted; noise: the mirror")
    ig_steps: int | None = Field(
        None, ge=1, description="atp_ig alone: points on the path that gradients are averaged over"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {"kind": data.get("id"), **data}
        if data["kind"] == "atp_ig":
            data = {"ig_steps": DEFAULT_IG_STEPS, **data}
        return data

    @model_validator(mode="after")
    def _ig_steps_are_for_atp_ig(self) -> Self:
        if (self.ig_steps is not None) != (self.kind == "atp_ig"):
            raise ValueError(f"ig_steps is a whole number for kind atp_ig and left out elsewhere; kind is {self.kind}")
        return self

    @model_validator(mode="after")
    def _metric_has_a_gradient(self) -> Self:
        # atp_ig takes its gradients between the runs, and exact takes none.
        if self.metric == "kl" and self.direction == "noise" and self.kind in {"atp", "atp_star"}:
            raise ValueError(
                f"metric kl is at its minimum on the clean run, where {self.kind} with direction noise takes its "
                "gradients: every score would be 0; use direction denoise, or kind exact or atp_ig"
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


def run_together(methods: Iterable[MethodSpec]) -> list[tuple[MethodSpec, ...]]:
    """Group methods by what shares forward runs: attribution patching of any direction, metric and components."""
    shared: list[MethodSpec] = []
    alone: list[MethodSpec] = []
    for method in methods:
        (shared if method.kind == "atp" else alone).append(method)
    return [*([tuple(shared)] if shared else []), *((method,) for method in alone)]
