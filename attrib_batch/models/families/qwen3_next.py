"""Qwen3-Next: layers of linear attention and of attention in turns, with experts.

Linear attention has no heads that mix positions by probabilities, so what is inside attention exists in some layers
only, and a component is read at every layer or not at all. What it keeps of earlier positions is a state and not keys,
so a prompt is computed whole.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from attrib_batch.models.families.base import Architecture, Family, layer_sites, llama_like, separate
from attrib_batch.spec import Component

_INSIDE_ATTENTION = (Component.Q, Component.K, Component.V, Component.Z, Component.ATTN_OUT)


def _architecture(_config: Any) -> Architecture:
    sites = layer_sites(separate(), resid_mid="post_attention_layernorm")
    kept = {component: site for component, site in sites.items() if component not in _INSIDE_ATTENTION}
    reason = "most of its layers have linear attention, and a component is read in every layer"
    return replace(
        llama_like(
            MappingProxyType(kept),
            reasons=dict.fromkeys(_INSIDE_ATTENTION, reason),
            mlp=None,
            mlp_because="most of its layers have linear attention",
        ),
        attention_interface=False,
    )


FAMILY = Family("Qwen3-Next", ("qwen3_next", "qwen3_5_text", "qwen3_5"), _architecture)
