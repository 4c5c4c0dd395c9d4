"""Where the oracle finds the components of each architecture, written down apart from the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QKV = ("q", "k", "v")
SEPARATE = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Fused:
    """How one projection's output [row, position, feature] holds queries, keys and values."""

    apart: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    """Each as [row, head, position, feature]."""
    together: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sites:
    """Module names of one architecture; those below ``layers`` are relative to a layer."""

    layers: str
    embedding: str
    projection: str | None  # its input is z; None where layers have none in common
    attn_out: str | Sequence[str]  # its output is what attention adds to the residual stream; a name for each kind
    mlp_out: str  # its output is what the MLP adds
    mid: str | None  # its input is resid_mid; None where it cannot be read
    mid_is_output: bool = False  # resid_mid is its output instead
    missing: Sequence[str] = ()  # further components that cannot be read
    own_attention: str | None = None  # the attention module, where it uses no function of transformers
    fused: Fused | None = None  # its projection's layout, where it has one; else there are three


def text_config(model: nn.Module) -> Any:
    """The configuration of the text model."""
    return getattr(model.config, "text_config", model.config)


def component_names(model: nn.Module) -> list[str]:
    """The components ``model`` has, in the order of the forward pass."""
    sites = sites_of(model)
    names = ["resid_pre", *QKV, "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    return [name for name in names if name not in sites.missing and (name != "resid_mid" or sites.mid is not None)]


def sites_of(model: nn.Module) -> Sites:
    """Where ``model`` has its components."""
    config = model.config
    kind = config.model_type
    if kind in {"gemma3", "mistral3"}:
        found, body = _SITES["gemma3_text" if kind == "gemma3" else "mistral"](config), "model.language_model"
        return replace(found, layers=f"{body}.layers", embedding=f"{body}.embed_tokens")
    return _SITES[kind](config)


def _llama_like(projection: str | None, attn_out: str | Sequence[str], mlp_out: str, mid: str | None) -> Sites:
    return Sites("model.layers", "model.embed_tokens", projection, attn_out, mlp_out, mid)


def _like_llama(_config: Any) -> Sites:
    return _llama_like("self_attn.o_proj", "self_attn.o_proj", "mlp", "post_attention_layernorm")


def _gpt2(_config: Any) -> Sites:
    return Sites("transformer.h", "transformer.wte", "attn.c_proj", "attn.c_proj", "mlp", "ln_2")


def _gptj(_config: Any) -> Sites:
    return Sites(
        "transformer.h", "transformer.wte", "attn.out_proj", "attn.out_proj", "mlp", None, own_attention="attn"
    )


def _gpt_neo(_config: Any) -> Sites:
    out = "attn.attention.out_proj"
    return Sites("transformer.h", "transformer.wte", out, out, "mlp", "ln_2", own_attention="attn.attention")


def _bloom(config: Any) -> Sites:
    dense = "self_attention.dense"
    return Sites(
        "transformer.h",
        "transformer.word_embeddings_layernorm",  # its layers begin with normalised embeddings
        dense,
        dense,
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
        own_attention="self_attention",
        fused=_three_a_head(config.num_attention_heads),
    )


def _falcon(config: Any) -> Sites:
    dense, n_heads = "self_attention.dense", config.num_attention_heads
    if config.new_decoder_architecture:
        fused = _groups(config.num_kv_heads, n_heads)
    else:
        fused = _groups(1, n_heads) if config.multi_query else _three_a_head(n_heads)
    parallel = config.parallel_attn or config.new_decoder_architecture
    return Sites(
        "transformer.h",
        "transformer.word_embeddings",
        dense,
        dense,
        "mlp",
        None if parallel else "post_attention_layernorm",
        own_attention="self_attention",
        fused=fused,
    )


def _gpt_neox(config: Any) -> Sites:
    mid = None if config.use_parallel_residual else "post_attention_layernorm"
    dense = "attention.dense"
    return Sites("gpt_neox.layers", "gpt_neox.embed_in", dense, dense, "mlp", mid)


def _phi(_config: Any) -> Sites:
    return _llama_like("self_attn.dense", "self_attn.dense", "mlp", None)


def _stablelm(config: Any) -> Sites:
    mid = None if config.use_parallel_residual else "post_attention_layernorm"
    return _llama_like("self_attn.o_proj", "self_attn.o_proj", "mlp", mid)


def _cohere(_config: Any) -> Sites:
    return _llama_like("self_attn.o_proj", "self_attn.o_proj", "mlp", None)


def _gemma(_config: Any) -> Sites:
    return _llama_like(
        "self_attn.o_proj", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"
    )


def _olmo2(_config: Any) -> Sites:
    return _llama_like("self_attn.o_proj", "post_attention_layernorm", "post_feedforward_layernorm", "mlp")


def _glm4(_config: Any) -> Sites:
    return _llama_like("self_attn.o_proj", "post_self_attn_layernorm", "post_mlp_layernorm", "post_attention_layernorm")


def _llama4(config: Any) -> Sites:
    found = _llama_like("self_attn.o_proj", "self_attn.o_proj", "feed_forward", "post_attention_layernorm")
    return replace(found, missing=("q", "k")) if config.use_qk_norm else found


def _qwen3_next(_config: Any) -> Sites:
    found = _llama_like(None, ("linear_attn", "self_attn"), "mlp", "post_attention_layernorm")
    return replace(found, missing=(*QKV, "z", "attn_out"))


def _opt(config: Any) -> Sites:
    after = not config.do_layer_norm_before
    body, out = "model.decoder", "self_attn.out_proj"
    mid = "self_attn_layer_norm" if after else None
    return Sites(f"{body}.layers", f"{body}.embed_tokens", out, out, "fc2", mid, mid_is_output=after)


def _three_a_head(n_heads: int) -> Fused:
    def apart(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = x.unflatten(-1, (n_heads, 3, -1)).transpose(1, 2)
        return parts[:, :, :, 0], parts[:, :, :, 1], parts[:, :, :, 2]

    return Fused(apart, lambda q, k, v: torch.stack([q, k, v], dim=3).transpose(1, 2).flatten(2))


def _groups(n_groups: int, n_heads: int) -> Fused:
    served = n_heads // n_groups

    def apart(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = x.unflatten(-1, (n_groups, served + 2, -1)).transpose(1, 2)
        queries = parts[:, :, :, :served].transpose(2, 3).flatten(1, 2)
        return queries, parts[:, :, :, served], parts[:, :, :, served + 1]

    def together(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [q.unflatten(1, (n_groups, served)).transpose(2, 3), k.unsqueeze(3), v.unsqueeze(3)]
        return torch.cat(parts, dim=3).transpose(1, 2).flatten(2)

    return Fused(apart, together)


def heads_apart(x: Tensor, n_heads: int) -> Tensor:
    """[row, position, feature] as [row, head, position, feature], heads side by side."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def heads_together(x: Tensor) -> Tensor:
    """The inverse."""
    return x.transpose(1, 2).flatten(2)


_LLAMA = (
    "gemma", "glm", "gpt_oss", "granite", "llama", "mistral", "mixtral", "olmo", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip
_SITES: dict[str, Callable[[Any], Sites]] = {
    **dict.fromkeys(_LLAMA, _like_llama),
    "bloom": _bloom,
    "cohere": _cohere,
    "cohere2": _cohere,
    "falcon": _falcon,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "glm4": _glm4,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "llama4_text": _llama4,
    "olmo2": _olmo2,
    "olmo3": _olmo2,
    "opt": _opt,
    "phi": _phi,
    "qwen3_5_text": _qwen3_next,
    "qwen3_next": _qwen3_next,
    "stablelm": _stablelm,
}
"""By the ``model_type`` of the text model."""
