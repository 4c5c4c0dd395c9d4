"""Qwen3: Llama with a norm of each head's queries and keys."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, Projections, Site, layer_sites, llama_like
from attrib_batch.models.families.views import flat, split


def _architecture(_config: Any) -> Architecture:
    projections = Projections(
        q=Site("self_attn.q_norm", "output", split, head_axis=2),
        k=Site("self_attn.k_norm", "output", split, head_axis=2),
        v=Site("self_attn.v_proj", "output", flat),
    )
    return llama_like(layer_sites(projections, resid_mid="post_attention_layernorm"))


FAMILY = Family("Qwen3", ("qwen3",), _architecture)
