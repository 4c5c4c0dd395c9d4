"""Llama, and what is built like it: Mistral, Qwen2."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, layer_sites, llama_like, separate


def _architecture(_config: Any) -> Architecture:
    return llama_like(layer_sites(separate(), resid_mid="post_attention_layernorm"))


FAMILY = Family("Llama", ("llama", "mistral", "qwen2"), _architecture)
