"""Models split over the processes of `tests.support.ranks`: their jobs, and what each process has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.models.sharded import load_shard
from attrib_batch.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.models.load import LoadedModel


def model_job(model: object, **options: object) -> ModelSpec:
    return ModelSpec.model_validate({"id": str(model), "prepend_bos": False, **options})


def double(folder: Path, **options: object) -> ModelSpec:
    """In float64, which no job file offers: shards add up in another order, and only rounding may come of it."""
    return model_job(folder, **options).model_copy(update={"dtype": "float64"})


LOADED: dict[tuple[str, int], LoadedModel] = {}
"""What this rank has loaded, by the job's model and the number of shards."""


def shard(model: ModelSpec, shards: int) -> LoadedModel:
    key = model.model_dump_json(), shards
    if key not in LOADED:
        LOADED[key] = load_shard(model, shards)
    return LOADED[key]
