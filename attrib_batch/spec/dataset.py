"""One table of prompt pairs of a sweep."""

from __future__ import annotations

from pydantic import Field

from attrib_batch.spec.base import PartitionName, Strict


class DatasetSpec(Strict):
    """One table of prompt pairs."""

    id: PartitionName = Field(description="its name in the tables")
    path: str = Field(
        min_length=1,
        description="a Parquet file: a path relative to the folder the command runs in, s3://, gs:// or hf://datasets/",
    )
    limit: int | None = Field(None, ge=1, description="only the first so many rows")
