"""One model of a sweep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from attrib_batch.spec.base import PartitionName, Strict
from attrib_batch.spec.names import reads_as_text
from attrib_batch.spec.workers import WorkersSpec

Dtype = Literal["float32", "bfloat16", "float16"]


class ModelSpec(Strict):
    """One model of the sweep."""

    id: str = Field(min_length=1, description="bundled name, local folder, or Hub repository id")
    name: PartitionName = Field(
        "", validate_default=False, description="its name in the tables; the last part of id where absent"
    )
    revision: str | None = Field(None, description="Hub revision: branch, tag or commit")
    dtype: Dtype = Field("float32", description="precision of weights and activations")
    device: str = Field(
        "auto",
        description="auto, cpu, cuda, cuda:1, ...; auto is cuda where the worker has a GPU (on Ray one that was given "
        "to it, in this process any), else cpu",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field("auto", description="attention implementation")
    deterministic: bool = Field(
        False,
        description="use deterministic kernels alone; otherwise a GPU's results may differ in their last digits from "
        "run to run",
    )
    prepend_bos: bool = Field(
        description="prepend the beginning-of-sequence token; always explicit, it changes results"
    )
    bos_token: str | None = Field(
        None,
        min_length=1,
        description="the token that prepend_bos prepends, as the vocabulary writes it; by default the tokenizer's own",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    allow_pickle: bool = Field(False, description="read weights that are not safetensors")
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="most token positions in one micro-batch, or auto: as many as memory allows; changes no result",
    )
    workers: WorkersSpec = Field(default_factory=WorkersSpec, description="the actors that own it")

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

    @model_validator(mode="after")
    def _a_bos_token_is_prepended(self) -> Self:
        if self.bos_token is not None and not self.prepend_bos:
            raise ValueError("bos_token is what prepend_bos: true prepends; leave it out, or set prepend_bos: true")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the keys that the stored numbers depend on, beside the weights, which have a hash of their own."""
        return self.model_dump(
            mode="json",
            exclude={"id", "name", "revision", "workers", "batch_tokens", "device", "deterministic"},
            exclude_none=True,
        )
