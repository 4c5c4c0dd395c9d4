"""How many workers of which kind own a model, and what each of them asks for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from attrib_batch.spec.base import Strict

WorkerKind = Literal["replica", "sharded", "ndif"]

DEFAULT_COLLECTIVE_SECONDS = 300.0

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*$", re.IGNORECASE)


def _check_count(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("expected a whole number of at least 1, or auto")


def _parse_bytes(value: Any) -> int:
    """Read bytes from a number, or from a text such as 8GB (10**9 each) or 8GiB (2**30 each)."""
    found = _SIZE.match(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if found is None:
        raise ValueError("expected a number of bytes, or a size such as 8GB or 8GiB")
    unit = (found[2] or "").upper()
    size = int(float(found[1]) * (1024 if "I" in unit else 1000) ** (" KMGT".index(unit[0]) if unit else 0))
    if not size:
        raise ValueError("expected a size above 0")
    return size


def _check_amount(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("Ray takes fractions below 1 and whole numbers")
    return value


WorkerCount = Annotated[int | Literal["auto"], PlainValidator(_check_count)]
Bytes = Annotated[int, BeforeValidator(_parse_bytes)]
CustomAmount = Annotated[float, Field(gt=0), AfterValidator(_check_amount)]
BUILT_IN_RESOURCES = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}


class WorkersSpec(Strict):
    """The actors that own the model."""

    kind: WorkerKind = Field(
        "replica",
        description="replica: each actor owns a whole model; sharded: each owns a tensor-parallel shard of it; "
        "ndif: each owns a session with an NDIF server that holds it",
    )
    count: WorkerCount = Field(
        1,
        description="how many workers: actors, gangs of shards, or sessions at once; auto: as many as Ray has room for",
    )
    cpus: float = Field(1, gt=0, description="processors per actor; also its number of compute threads")
    gpus: float = Field(
        0,
        ge=0,
        description="GPUs per actor; 2 or more spread a replica over them, a fraction is a fraction of one's memory",
    )
    memory: Bytes | None = Field(None, description="memory per actor that Ray sets aside: bytes, or as in 8GB or 8GiB")
    resources: dict[str, CustomAmount] = Field(
        default_factory=dict, description="custom resources of Ray per actor, by name"
    )
    shards: int | None = Field(None, ge=2, description="sharded alone: actors in a gang, each with one shard")
    placement: Literal["pack", "spread"] | None = Field(
        None, description="sharded alone: pack keeps a gang on one node (the default), spread puts it on several"
    )
    collective_seconds: float | None = Field(
        None, gt=0, description="sharded alone: how long shards wait for each other before their gang is replaced"
    )
    host: str | None = Field(
        None, pattern=r"^https?://", description="ndif alone: the server; the environment's NDIF_HOST where absent"
    )
    timeout_seconds: float = Field(
        3600,
        gt=0,
        description="the longest a worker may take to finish something before it is taken for hung and "
        "replaced; the speed seen so far mostly says so earlier",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "sharded":
            return {"placement": "pack", "collective_seconds": DEFAULT_COLLECTIVE_SECONDS, **data}
        return data

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        for name, kind in (
            ("shards", "sharded"), ("placement", "sharded"), ("collective_seconds", "sharded"), ("host", "ndif"),
        ):  # fmt: skip
            if self.kind != kind and getattr(self, name) is not None:
                raise ValueError(f"{name} is for kind {kind}; kind is {self.kind}")
        if self.kind == "sharded" and self.shards is None:
            raise ValueError("kind sharded needs shards: into how many the model is split")
        if self.kind == "sharded" and self.gpus not in {0, 1}:
            raise ValueError(f"a shard takes 0 or 1 GPU, not {self.gpus:g}; shards says over how many the model lies")
        for name in BUILT_IN_RESOURCES.keys() & self.resources.keys():
            raise ValueError(f"resources are custom ones; {name} has a key of its own: {BUILT_IN_RESOURCES[name]}")
        if self.kind == "ndif" and self.gpus:
            raise ValueError("an NDIF session needs no GPU here; leave gpus out")
        return self

    @property
    def actors(self) -> int:
        """How many Ray actors one worker is."""
        return self.shards or 1
