"""Phi: attention and MLP read the same residual stream in parallel; with or without a norm of queries and keys."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import (
    Architecture,
    Family,
    Projections,
    Site,
    layer_sites,
    llama_like,
    separate,
)
from attrib_batch.models.families.views import flat, split_heads_first


def _architecture(config: Any) -> Architecture:
    return llama_like(
        layer_sites(_normed() if config.qk_layernorm else separate(), output="self_attn.dense", resid_mid=None),
        final_norm="model.final_layernorm",
    )


def _normed() -> Projections:
    return Projections(
        q=Site("self_attn.q_layernorm", "output", split_heads_first, head_axis=1),
        k=Site("self_attn.k_layernorm", "output", split_heads_first, head_axis=1),
        v=Site("self_attn.v_proj", "output", flat),
        values_first=True,
    )


FAMILY = Family("Phi", ("phi",), _architecture)
