"""Llama, and what has its parts in the same places.

What differs is inside them: Gemma scales the embedding; Granite multiplies what attention and MLP add to the residual
stream by a constant, behind the modules that are read here, so that ``attn_out`` and ``mlp_out`` are theirs before it
(a score is the same before and after a multiplication by a constant); SmolLM3 has layers without a rotary embedding;
Starcoder 2 has another MLP; Mixtral, Qwen2-MoE and GPT-OSS have experts, and GPT-OSS attention sinks. Mistral Small 3
is multimodal (``mistral3``): its text model stands one level deeper.
"""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import (
    EXPERTS,
    GATED,
    GATED_IN_ONE,
    Architecture,
    Family,
    Mlp,
    layer_sites,
    llama_like,
    separate,
)

_EXPERTS = ("mixtral", "qwen2_moe", "gpt_oss")
_MLPS = {"starcoder2": Mlp("mlp.act"), "glm": GATED_IN_ONE}


def _architecture(config: Any) -> Architecture:
    text = llama_like(
        layer_sites(separate(), resid_mid="post_attention_layernorm"),
        mlp=None if config.model_type in _EXPERTS else _MLPS.get(config.model_type, GATED),
        mlp_because=EXPERTS,
    )
    return text.within("model.language_model") if config.model_type == "mistral3" else text


FAMILY = Family(
    "Llama",
    (
        "llama", "mistral", "mistral3", "qwen2", "gemma", "glm", "granite", "smollm3", "starcoder2", "mixtral",
        "qwen2_moe", "gpt_oss",
    ),
    _architecture,
)  # fmt: skip
