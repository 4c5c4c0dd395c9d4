"""A tiny random model of every supported architecture: real transformers classes, random weights.

The weights are larger than a fresh initialisation and no norm or bias is trivial, so that a forgotten norm,
bias, window or soft cap changes a score visibly.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

BOS, UNKNOWN = "<bos>", "<unk>"
NAMES = ("Mary", "John", "Anna", "Paul", "Kate", "Mark")
WORDS = tuple(f"w{i}" for i in range(120))
VOCABULARY = (BOS, UNKNOWN, *NAMES, *WORDS)
"""Every token; its index is its id."""

N_LAYERS, HIDDEN, N_HEADS, N_KV_HEADS, MAX_POSITIONS = 3, 48, 4, 2, 128
SHORT_WINDOW = 6
"""A sliding window shorter than the test prompts."""

_SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GROUPED = {"num_key_value_heads": N_KV_HEADS}
_WIDE_HEADS = {"head_dim": 16}  # not HIDDEN / N_HEADS: the attention is wider than the residual stream
_MIXED_WINDOWS = {
    "sliding_window": SHORT_WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_HALF_ROTARY = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}


def _tiny(model_type: str, *, auto: Any = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config)
        _make_vectors_random(model)
    return model.float().eval()


def _make_vectors_random(model: PreTrainedModel) -> None:
    """Move norm weights off one (off zero in Gemma, which adds one itself) and biases off zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": partial(_tiny, "gpt2"),
    "gpt_neox": partial(_tiny, "gpt_neox", rope_parameters=_HALF_ROTARY),
    "gpt_neox_sequential": partial(_tiny, "gpt_neox", rope_parameters=_HALF_ROTARY, use_parallel_residual=False),
    "llama": partial(_tiny, "llama", **_GROUPED),
    "mistral": partial(_tiny, "mistral", sliding_window=64, **_GROUPED, **_WIDE_HEADS),
    "mistral_short_window": partial(_tiny, "mistral", sliding_window=SHORT_WINDOW, **_GROUPED),
    "qwen2": partial(_tiny, "qwen2", **_GROUPED),
    "qwen3": partial(_tiny, "qwen3", **_GROUPED, **_WIDE_HEADS),
    "gemma2": partial(
        _tiny,
        "gemma2",
        attn_logit_softcapping=3.0,
        final_logit_softcapping=8.0,
        query_pre_attn_scalar=20,
        **_GROUPED,
        **_WIDE_HEADS,
        **_MIXED_WINDOWS,
    ),
    "gemma3": partial(_tiny, "gemma3_text", query_pre_attn_scalar=20, **_GROUPED, **_WIDE_HEADS, **_MIXED_WINDOWS),
    "phi": partial(_tiny, "phi", rope_parameters=_HALF_ROTARY, **_GROUPED),
    "olmo2": partial(_tiny, "olmo2", **_GROUPED),
}
"""A function per architecture (or variant of one) that builds its tiny model, the same one at every call.

Tests of what all models have in common run on these; they differ in layout.
"""

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 2}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 32}
_SLIDING = {"sliding_window": SHORT_WINDOW}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_LLAMA4 = {
    **_GROUPED,
    **_EXPERTS,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 80,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": SHORT_WINDOW,
    "no_rope_layers": [1, 0, 1],
    "floor_scale": 3,
    "attn_scale": 0.5,
}
_SCALED_BY_POSITION = {
    "rope_theta": 10000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 4,
    "llama_4_scaling_beta": 0.5,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

MORE_ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2_scaled_by_layer": partial(_tiny, "gpt2", scale_attn_by_inverse_layer_idx=True),
    "gpt2_upcast": partial(
        _tiny,
        "gpt2",
        reorder_and_upcast_attn=True,
        scale_attn_by_inverse_layer_idx=True,
        attn_implementation="eager",
    ),
    "gemma": partial(_tiny, "gemma", **_GROUPED, **_WIDE_HEADS),
    "gemma3_multimodal": partial(
        _tiny,
        "gemma3",
        text_config={**_SHAPE, "query_pre_attn_scalar": 20, **_GROUPED, **_WIDE_HEADS, **_MIXED_WINDOWS},
        vision_config={**_VISION, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    ),
    "mistral3": partial(
        _tiny,
        "mistral3",
        auto=AutoModelForImageTextToText,
        text_config={
            **_SHAPE,
            "model_type": "ministral3",
            **_GROUPED,
            **_WIDE_HEADS,
            "rope_parameters": _SCALED_BY_POSITION,
        },
        vision_config={**_VISION, "model_type": "pixtral"},
    ),
    "phi3": partial(_tiny, "phi3", **_GROUPED, **_SLIDING),
    "gptj": partial(_tiny, "gptj", rotary_dim=8),
    "gpt_neo": partial(_tiny, "gpt_neo", attention_types=[[["global", "local", "local"], 1]], window_size=SHORT_WINDOW),
    "opt": partial(_tiny, "opt", ffn_dim=96, init_std=0.2),
    "opt_normed_after": partial(
        _tiny, "opt", ffn_dim=96, init_std=0.2, do_layer_norm_before=False, word_embed_proj_dim=32
    ),
    "bloom": partial(_tiny, "bloom"),
    "bloom_normed_stream": partial(_tiny, "bloom", apply_residual_connection_post_layernorm=True),
    "falcon": partial(_tiny, "falcon", new_decoder_architecture=True, num_kv_heads=N_KV_HEADS),
    "falcon_multi_query": partial(_tiny, "falcon"),
    "falcon_alibi": partial(_tiny, "falcon", alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "stablelm": partial(_tiny, "stablelm", rope_parameters=_HALF_ROTARY, **_GROUPED, use_qkv_bias=True),
    "stablelm_parallel": partial(
        _tiny, "stablelm", rope_parameters=_HALF_ROTARY, **_GROUPED, qk_layernorm=True, use_parallel_residual=True
    ),
    "starcoder2": partial(_tiny, "starcoder2", **_GROUPED, **_SLIDING),
    "olmo": partial(_tiny, "olmo", **_GROUPED),
    "olmo_clipped": partial(_tiny, "olmo", **_GROUPED, clip_qkv=1.0),
    "olmo3": partial(_tiny, "olmo3", **_GROUPED, **_MIXED_WINDOWS),
    "smollm3": partial(_tiny, "smollm3", **_GROUPED, no_rope_layers=[1, 0, 1]),
    "granite": partial(
        _tiny,
        "granite",
        **_GROUPED,
        embedding_multiplier=2.0,
        residual_multiplier=0.4,
        attention_multiplier=0.2,
        logits_scaling=1.5,
    ),
    "cohere": partial(_tiny, "cohere", **_GROUPED, logit_scale=0.5),
    "cohere_normed": partial(_tiny, "cohere", **_GROUPED, use_qk_norm=True),
    "cohere2": partial(_tiny, "cohere2", **_GROUPED, **_MIXED_WINDOWS),
    "glm": partial(_tiny, "glm", **_GROUPED, **_WIDE_HEADS),
    "glm4": partial(_tiny, "glm4", **_GROUPED, **_WIDE_HEADS),
    "mixtral": partial(_tiny, "mixtral", **_GROUPED, **_EXPERTS),
    "qwen2_moe": partial(_tiny, "qwen2_moe", **_GROUPED, **_QWEN_EXPERTS, **_SHARED_EXPERT),
    "qwen3_moe": partial(_tiny, "qwen3_moe", **_GROUPED, **_WIDE_HEADS, **_QWEN_EXPERTS),
    "gpt_oss": partial(_tiny, "gpt_oss", **_GROUPED, **_WIDE_HEADS, **_EXPERTS, **_MIXED_WINDOWS),
    "llama4": partial(_tiny, "llama4_text", **_LLAMA4, **_WIDE_HEADS),
    "llama4_not_normed": partial(_tiny, "llama4_text", **_LLAMA4, **_WIDE_HEADS, use_qk_norm=False),
    "qwen3_next": partial(_tiny, "qwen3_next", **_GROUPED, **_WIDE_HEADS, **_QWEN_EXPERTS, **_SHARED_EXPERT, **_LINEAR),
    "qwen3_5": partial(_tiny, "qwen3_5_text", **_GROUPED, **_WIDE_HEADS, **_LINEAR),
}
"""The same for families and variants that tests of everything else do not run on, to keep them short."""

EVERY_ARCHITECTURE = {**ARCHITECTURES, **MORE_ARCHITECTURES}
"""All of them."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of ``VOCABULARY``; words are split at spaces, and no BOS is added unasked."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_POSITIONS,
    )


def save_tiny(name: str, folder: Path) -> Path:
    """Save the tiny model ``name`` and its tokenizer in ``folder``, as ``from_pretrained`` reads them.

    ``AutoTokenizer`` takes whatever lies beside a Qwen2 model for a byte-level BPE and then knows no word:
    read the tokenizer of ``qwen2`` with ``PreTrainedTokenizerFast``.
    """
    EVERY_ARCHITECTURE[name]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
