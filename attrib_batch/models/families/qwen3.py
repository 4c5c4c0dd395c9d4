"""Qwen3, with and without experts: Llama with a norm of each head's queries and keys."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import (
    EXPERTS,
    GATED,
    Architecture,
    Family,
    layer_sites,
    llama_like,
    normed_by_head,
)


def _architecture(config: Any) -> Architecture:
    return llama_like(
        layer_sites(normed_by_head(), resid_mid="post_attention_layernorm"),
        mlp=None if config.model_type == "qwen3_moe" else GATED,
        mlp_because=EXPERTS,
    )


FAMILY = Family("Qwen3", ("qwen3", "qwen3_moe"), _architecture)
