"""GPT-2: one fused projection of queries, keys and values, in three blocks."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, fused, gpt_like, layer_sites
from attrib_batch.models.families.views import blocks_of_three


def _architecture(_config: Any) -> Architecture:
    projections = fused("attn.c_attn", blocks_of_three)
    return gpt_like(layer_sites(projections, output="attn.c_proj", resid_mid="ln_2"))


FAMILY = Family("GPT-2", ("gpt2",), _architecture)
