"""BLOOM: one fused projection, interleaved by head; positions enter by ALiBi alone, counted from the first key.

Attention and MLP add their own output to the residual stream, so what they add is read at their last projections.
"""

from __future__ import annotations

from typing import Any

from attrib_batch.errors import ModelError
from attrib_batch.models.families.base import Architecture, Family, Mlp, fused, gpt_like, layer_sites
from attrib_batch.models.families.views import interleaved_by_head


def _architecture(config: Any) -> Architecture:
    if config.slow_but_exact and config.pretraining_tp > 1:
        raise ModelError(
            "bloom with slow_but_exact multiplies by slices of its matrices, past the modules that are read here. Set "
            "slow_but_exact: false in its config.json"
        )
    return gpt_like(
        layer_sites(
            fused("self_attention.query_key_value", interleaved_by_head),
            output="self_attention.dense",
            resid_mid="post_attention_layernorm",
            mlp_out="mlp.dense_4h_to_h",
        ),
        attention="self_attention",
        embedding="word_embeddings",
        attention_interface=False,
        takes_position_ids=False,
        plain_skip=not config.apply_residual_connection_post_layernorm,
        layer_gives_tuple=True,
        mlp=Mlp("mlp.gelu_impl"),
    )


FAMILY = Family("BLOOM", ("bloom",), _architecture)
