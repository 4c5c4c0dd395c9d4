"""What all parts of a job file have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from attrib_batch.spec.names import check_name, check_partition_name

Name = Annotated[str, AfterValidator(check_name)]
PartitionName = Annotated[Name, AfterValidator(check_partition_name)]
"""A name that is a folder of the tables, and from it a value of a column."""


class Strict(BaseModel):
    """Refuses unknown keys, and is not changed once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
