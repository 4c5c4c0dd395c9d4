"""The job file: what a sweep computes, on what, with how many workers.

Each field's description is its documentation; unknown keys are refused. What changes numbers or the layout of files
is part of the job's fingerprint; how many workers compute it, and in batches of what size, is not.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from attrib_batch.errors import JobError
from attrib_batch.metric_names import check_metric_name
from attrib_batch.partition_names import check_name, check_partition_name, reads_as_text
from attrib_batch.schema import Cell, Component

if TYPE_CHECKING:
    from collections.abc import Iterable

Name = Annotated[str, AfterValidator(check_name)]
PartitionName = Annotated[Name, AfterValidator(check_partition_name)]
"""A name that is a folder of the tables, and from it a value of a column."""

MetricName = Annotated[str, AfterValidator(check_metric_name)]

MethodKind = Literal["atp", "atp_ig", "atp_star", "exact"]
Direction = Literal["denoise", "noise"]
WorkerKind = Literal["replica", "sharded", "ndif"]
Dtype = Literal["float32", "bfloat16", "float16"]

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*$", re.IGNORECASE)


def _check_count(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("expected a whole number of at least 1, or auto")


def _parse_bytes(value: Any) -> int:
    """Bytes of a number, or of a text such as 8GB (10**9 each) or 8GiB (2**30 each)."""
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

DEFAULT_IG_STEPS = 8
DEFAULT_COLLECTIVE_SECONDS = 300.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Workers(_Strict):
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
    gpus: float = Field(0, ge=0, description="GPUs per actor; 2 or more spread a replica over them")
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


class ModelJob(_Strict):
    """One model of the sweep."""

    id: str = Field(min_length=1, description="bundled name, local folder, or Hub repository id")
    name: PartitionName = Field(
        "", validate_default=False, description="its name in the tables; the last part of id where absent"
    )
    revision: str | None = Field(None, description="Hub revision: branch, tag or commit")
    dtype: Dtype = Field("float32", description="precision of weights and activations")
    device: str = Field("auto", description="auto (cuda if there, else cpu), cpu, cuda, cuda:1, ...")
    attention: Literal["auto", "sdpa", "eager"] = Field("auto", description="attention implementation")
    prepend_bos: bool = Field(
        description="prepend the beginning-of-sequence token; always explicit, it changes results"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    allow_pickle: bool = Field(False, description="read weights that are not safetensors")
    batch_tokens: int = Field(8192, ge=1, description="most token positions in one micro-batch; changes no result")
    workers: Workers = Field(default_factory=Workers, description="the actors that own it")

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" not in data and isinstance(data.get("id"), str):
            last = data["id"].rstrip("/").rsplit("/", 1)[-1]
            name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")
            if name and not reads_as_text(name):
                raise ValueError(
                    f"the last part of id, {name!r}, would be its name in the tables, and Polars, pyarrow or DuckDB "
                    f"read that back as a number, a date or a truth value: set name, for example name: id-{name}"
                )
            return {**data, "name": name}
        return data

    @model_validator(mode="after")
    def _local_files_have_no_revision(self) -> Self:
        if self.revision is not None and Path(self.id).is_dir():
            raise ValueError("revision is for Hub models; a local folder has none")
        return self


class DatasetJob(_Strict):
    """One table of prompt pairs."""

    id: PartitionName = Field(description="its name in the tables")
    path: str = Field(
        min_length=1,
        description="a Parquet file: a path relative to the folder the command runs in, s3://, gs:// or hf://datasets/",
    )
    limit: int | None = Field(None, ge=1, description="only the first so many rows")


class MethodJob(_Strict):
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


def run_together(methods: Iterable[MethodJob]) -> list[tuple[MethodJob, ...]]:
    """Group methods by what shares forward runs: attribution patching of any direction, metric and components."""
    shared: list[MethodJob] = []
    alone: list[MethodJob] = []
    for method in methods:
        (shared if method.kind == "atp" else alone).append(method)
    return [*([tuple(shared)] if shared else []), *((method,) for method in alone)]


class Job(_Strict):
    """A sweep: every model on every dataset with every method."""

    name: Name = Field(description="the job's name, shown in logs and the report")
    models: tuple[ModelJob, ...] = Field(min_length=1, description="the models")
    datasets: tuple[DatasetJob, ...] = Field(min_length=1, description="the tables of prompt pairs")
    methods: tuple[MethodJob, ...] = Field(min_length=1, description="the methods")
    chunk_pairs: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="pairs per chunk: the unit of work, commit and retry; "
        "pairs of one shape are batched within a chunk, so larger ones are faster",
    )
    allow_boundary: bool = Field(
        False,
        description="score pairs whose prompt is cut into other tokens once an answer follows, such as a prompt that "
        "ends in a space: the answer counts as the token that it is on its own; otherwise such a pair is a failure",
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, names in (
            ("models", [model.name for model in self.models]),
            ("datasets", [dataset.id for dataset in self.datasets]),
            ("methods", [method.id for method in self.methods]),
        ):
            twice = [name for name, n in Counter(names).items() if n > 1]
            if twice:
                key = "name" if what == "models" else "id"
                raise ValueError(f"two {what} are both called {twice[0]!r}: give each its own {key}")
        return self

    @property
    def cells(self) -> list[Cell]:
        """The cells of the sweep, models outermost."""
        return [
            Cell(model.name, dataset.id, method.id)
            for model in self.models
            for dataset in self.datasets
            for method in self.methods
        ]

    def model(self, name: str) -> ModelJob:
        """The model of that name."""
        return next(model for model in self.models if model.name == name)

    def dataset(self, name: str) -> DatasetJob:
        """The dataset of that name."""
        return next(dataset for dataset in self.datasets if dataset.id == name)

    def method(self, name: str) -> MethodJob:
        """The method of that name."""
        return next(method for method in self.methods if method.id == name)

    def identity(self) -> dict[str, Any]:
        """What the stored numbers and files depend on, beside the contents of the datasets and models.

        The job's name, the workers, devices and batch sizes change no number, and a model or dataset is known by its
        own fingerprint, wherever it lies.
        """
        return self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "models": {"__all__": {"id", "revision", "workers", "batch_tokens", "device"}},
                "datasets": {"__all__": {"path"}},
            },
        )


def load_job(path: str | Path) -> Job:
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
    return parse_job(data, source=str(path))


def parse_job(data: object, *, source: str) -> Job:
    """Check a job's data; ``source`` names it in messages.

    Raises:
        JobError: naming the key and what was expected.
    """
    if not isinstance(data, dict):
        raise JobError(f"{source}: a job is a mapping with the keys {', '.join(Job.model_fields)}")
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{source}: " + "\n".join(_explain(item) for item in _root_causes(error.errors()))) from error


def _root_causes(items: list[Any]) -> list[Any]:
    """Without the complaint that a list is empty which follows from complaints about its entries."""
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(other["loc"][: len(item["loc"])] == item["loc"] for other in items if other is not item)
    ]


def _explain(item: Any) -> str:
    """One pydantic complaint as a sentence: the key, what was expected, what stands there."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    owner = _owner(item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; known here: {', '.join(owner.model_fields)}"
    if item["type"] == "missing":
        field = owner.model_fields[item["loc"][-1]]
        return f"{key}: missing; expected {field.description}"
    message: str = item["msg"].removeprefix("Value error, ")
    if not key:
        return message
    got = item["input"]
    return f"{key}: {message}" + (f", not {got!r}" if isinstance(got, str | int | float | bool | None) else "")


def _owner(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model class in which the last key of ``loc`` stands."""
    owners: dict[str, type[BaseModel]] = {
        "models": ModelJob,
        "datasets": DatasetJob,
        "methods": MethodJob,
        "workers": Workers,
    }
    named = [owners[part] for part in loc[:-1] if isinstance(part, str) and part in owners]
    return named[-1] if named else Job
