"""Llama 4, its text model: experts, attention in chunks, layers without a rotary embedding.

The experts' output has the positions of all prompts on one axis. Layers with a rotary embedding normalise queries and
keys behind it, by one module that is called twice: they are nowhere to be read in between. In layers without one,
queries may be scaled by a number that is counted from the cached keys, not from ``position_ids``.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from attrib_batch.models.families.base import (
    CHANGED_IN_PLACE,
    EXPERTS,
    Architecture,
    Family,
    Site,
    layer_sites,
    llama_like,
    separate,
)
from attrib_batch.models.families.dimensions import text_config
from attrib_batch.spec import Component

_NORMED = "one module normalises queries and keys behind the rotary embedding (use_qk_norm), where they cannot be told"


def _architecture(config: Any) -> Architecture:
    text = text_config(config)
    sites = dict(
        layer_sites(
            separate(),
            resid_mid="post_attention_layernorm",
            mlp_out=Site("feed_forward", "output", rows_as_in=("feed_forward", "input")),
        )
    )
    reasons = {}
    if text.use_qk_norm and any(text.no_rope_layers):
        for component in (Component.Q, Component.K):
            del sites[component]
            reasons[component] = _NORMED
    tuned = text.attn_temperature_tuning and not all(text.no_rope_layers)
    return replace(
        llama_like(MappingProxyType(sites), reasons=reasons, mlp=None, mlp_because=EXPERTS),
        takes_position_ids=not tuned,
        whole_because=CHANGED_IN_PLACE,
    )


FAMILY = Family("Llama 4", ("llama4_text", "llama4"), _architecture)
