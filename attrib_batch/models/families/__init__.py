"""Where each component lives, one module per family: the one place that knows module names.

``base`` says what a family is described by, ``views`` how heads lie in a tensor, ``registry`` finds a model's family.
"""

from attrib_batch.models.families.base import (
    Architecture,
    End,
    Family,
    Projections,
    Site,
    SiteKey,
    layer_sites,
    llama_like,
    separate,
)
from attrib_batch.models.families.dimensions import Dimensions, text_config
from attrib_batch.models.families.registry import (
    FAMILIES,
    FAMILY_GROUP,
    architecture_of,
    dimensions_of,
    known_model_types,
)

__all__ = [
    "FAMILIES",
    "FAMILY_GROUP",
    "Architecture",
    "Dimensions",
    "End",
    "Family",
    "Projections",
    "Site",
    "SiteKey",
    "architecture_of",
    "dimensions_of",
    "known_model_types",
    "layer_sites",
    "llama_like",
    "separate",
    "text_config",
]
