"""Falcon: one fused projection in one of three layouts; rotary embedding or ALiBi; parallel or sequential blocks.

The layouts are one with groups: a key and a value for every group of queries, where a group is one head (Falcon-RW),
some heads (the new decoder architecture) or all of them (multi-query attention).
"""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, Site, fused, gpt_like, layer_sites
from attrib_batch.models.families.views import interleaved_by_group


def _architecture(config: Any) -> Architecture:
    parallel = config.parallel_attn or config.new_decoder_architecture
    return gpt_like(
        layer_sites(
            fused("self_attention.query_key_value", interleaved_by_group),
            output="self_attention.dense",
            resid_mid=None if parallel else "post_attention_layernorm",
            # In parallel blocks attention's output is added to the MLP's in place.
            mlp_out=Site("mlp", "output", changed_later=parallel),
        ),
        attention="self_attention",
        embedding="word_embeddings",
        attention_interface=False,
        takes_position_ids=not config.alibi,
        layer_gives_tuple=True,
        n_kv_heads=_key_value_heads(config),
    )


def _key_value_heads(config: Any) -> int:
    n_heads = config.num_attention_heads
    if config.new_decoder_architecture:
        return int(config.num_kv_heads or n_heads)
    return 1 if config.multi_query else int(n_heads)


FAMILY = Family("Falcon", ("falcon",), _architecture)
