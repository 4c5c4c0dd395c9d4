"""What scoring reads of a method of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attrib_batch.spec import Component, Direction, MethodSpec


@dataclass(frozen=True)
class Method:
    """A method as plain values, which travel to a server: a `MethodSpec` checks itself with a library that does not."""

    id: str
    components: tuple[Component, ...]
    metric: str
    direction: Direction
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, spec: MethodSpec) -> Method:
        """Take what scoring reads from a method of a job."""
        return cls(spec.id, spec.components, spec.metric, spec.direction, spec.parameters)
