"""Phi-3: Llama with one fused projection of queries, keys and values, one after another."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import GATED_IN_ONE, Architecture, Family, fused, layer_sites, llama_like
from attrib_batch.models.families.views import one_after_another


def _architecture(_config: Any) -> Architecture:
    projections = fused("self_attn.qkv_proj", one_after_another)
    return llama_like(layer_sites(projections, resid_mid="post_attention_layernorm"), mlp=GATED_IN_ONE)


FAMILY = Family("Phi-3", ("phi3",), _architecture)
