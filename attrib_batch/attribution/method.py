"""What scoring reads of a method of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attrib_batch.attribution.references import Means, Reference
from attrib_batch.spec import Component, Direction, MethodSpec
from attrib_batch.spec.method import MEAN, ZERO


@dataclass(frozen=True)
class Method:
    """A method as plain values, which travel to a server: a `MethodSpec` checks itself with a library that does not."""

    id: str
    components: tuple[Component, ...]
    metric: str
    direction: Direction
    parameters: Mapping[str, Any]
    reference: Reference | None = None
    """What activations are replaced by; None: the other prompt's."""

    @classmethod
    def of(cls, spec: MethodSpec, means: Means | None = None) -> Method:
        """Take what scoring reads from a method of a job.

        Args:
            spec: the method.
            means: those of the dataset, where its reference is the mean.

        Raises:
            ValueError: its reference is the mean, and there is none.
        """
        # Imported here: what is imported above travels to servers, and the registry does not.
        from attrib_batch.spec.registries.methods import method_entry

        reference = None
        if spec.reference == MEAN and not method_entry(spec.kind).collects:
            if means is None:
                raise ValueError(f"method {spec.id!r} takes mean activations, and none are given")
            reference = Reference(means)
        elif spec.reference == ZERO:
            reference = Reference()
        return cls(spec.id, spec.components, spec.metric, spec.direction, spec.parameters, reference)
