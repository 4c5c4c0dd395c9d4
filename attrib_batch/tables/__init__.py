"""The tables of a run: their Arrow schemas, where each lies, and the files beside them."""

from attrib_batch.tables.layout import Chunk, Table, parse_part_name, part_name
from attrib_batch.tables.schema import (
    BASELINES,
    FAILURES,
    PAIRS,
    READABLE_SCHEMA_VERSIONS,
    REQUIRED_PAIR_COLUMNS,
    ROLE_SPAN,
    SCHEMA_VERSION,
    SCORES,
    FailureReason,
    Stage,
)

__all__ = [
    "BASELINES",
    "FAILURES",
    "PAIRS",
    "READABLE_SCHEMA_VERSIONS",
    "REQUIRED_PAIR_COLUMNS",
    "ROLE_SPAN",
    "SCHEMA_VERSION",
    "SCORES",
    "Chunk",
    "FailureReason",
    "Stage",
    "Table",
    "parse_part_name",
    "part_name",
]
