"""GPT-NeoX (Pythia): one fused projection, interleaved by head; attention and MLP in parallel or in sequence."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import PARALLEL, Architecture, Family, Mlp, fused, layer_sites
from attrib_batch.models.families.views import interleaved_by_head


def _architecture(config: Any) -> Architecture:
    projections = fused("attention.query_key_value", interleaved_by_head)
    return Architecture(
        layers="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        sites=layer_sites(
            projections,
            output="attention.dense",
            resid_mid=None if config.use_parallel_residual else "post_attention_layernorm",
        ),
        reasons=PARALLEL,
        mlp=Mlp("mlp.act"),
    )


FAMILY = Family("GPT-NeoX", ("gpt_neox",), _architecture)
