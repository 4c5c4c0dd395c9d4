"""The tables of a run: their Arrow schemas, where each lies, and the files beside them."""

from attrib_batch.tables.layout import Chunk, Table, parse_part_name, part_name
from attrib_batch.tables.manifest import (
    MANIFEST,
    REFERENCE,
    SCORING,
    VERIFICATION,
    Manifest,
    StageEntry,
    find_manifest,
    read_manifest,
)
from attrib_batch.tables.moments import MOMENTS, STRATA, Scope, StratumKind
from attrib_batch.tables.plan import CellPlan
from attrib_batch.tables.schema import (
    BASELINES,
    FAILURES,
    MEANS,
    MEASURED,
    PAIRS,
    PROMPTS,
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
    "MANIFEST",
    "MEANS",
    "MEASURED",
    "MOMENTS",
    "PAIRS",
    "PROMPTS",
    "READABLE_SCHEMA_VERSIONS",
    "REFERENCE",
    "REQUIRED_PAIR_COLUMNS",
    "ROLE_SPAN",
    "SCHEMA_VERSION",
    "SCORES",
    "SCORING",
    "STRATA",
    "VERIFICATION",
    "CellPlan",
    "Chunk",
    "FailureReason",
    "Manifest",
    "Scope",
    "Stage",
    "StageEntry",
    "StratumKind",
    "Table",
    "find_manifest",
    "parse_part_name",
    "part_name",
    "read_manifest",
]
