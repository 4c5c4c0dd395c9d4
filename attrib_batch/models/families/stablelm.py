"""StableLM: with or without a norm of each head's queries and keys; attention and MLP in sequence or in parallel."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, layer_sites, llama_like, normed_by_head, separate


def _architecture(config: Any) -> Architecture:
    normed = normed_by_head("q_layernorm", "k_layernorm", heads_first=True, values_first=True)
    return llama_like(
        layer_sites(
            normed if config.qk_layernorm else separate(),
            resid_mid=None if config.use_parallel_residual else "post_attention_layernorm",
        )
    )


FAMILY = Family("StableLM", ("stablelm",), _architecture)
