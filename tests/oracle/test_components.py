"""What the oracle calls a component: what adds up to the residual stream, heads, queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from tests.support import oracle
from tests.support.hooked_run import QKV, run, sites_of
from tests.support.near import assert_near, estimated_terms
from tests.support.oracle_checks import LENGTH, PAIR, every_architecture
from tests.support.sites import text_config
from tests.support.tiny_models import EVERY_ARCHITECTURE, N_LAYERS, SHORT_WINDOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


@every_architecture
def test_own_attention_computes_what_the_model_computes(model: PreTrainedModel) -> None:
    assert LENGTH > SHORT_WINDOW  # or no sliding window would be tested
    before = model.config._attn_implementation
    own = run(model, PAIR.clean, own_attention=True)
    assert model.config._attn_implementation == before
    logits = model(torch.tensor([PAIR.clean])).logits[0, -1]
    assert_near(own.logits, logits, estimated_terms(logits))
    hooks = run(model, PAIR.clean, own_attention=False)
    for key, tensor in hooks.seen.items():
        assert_near(own.seen[key], tensor, estimated_terms(tensor))


NORMED_STREAM = {"bloom_normed_stream", "opt_normed_after"}


@pytest.mark.parametrize("model", sorted(EVERY_ARCHITECTURE.keys() - NORMED_STREAM), indirect=True)
def test_components_add_up_to_the_residual_stream(model: PreTrainedModel) -> None:
    """Where the stream itself is not normalised; Granite multiplies what is added."""
    seen = run(model, PAIR.clean, own_attention=False).seen
    share = getattr(model.config, "residual_multiplier", 1)
    for layer in range(N_LAYERS):
        after_attention = seen["resid_pre", layer] + share * seen["attn_out", layer]
        if "resid_mid" in oracle.component_names(model):
            assert_near(seen["resid_mid", layer], after_attention, estimated_terms(after_attention))
        after_mlp = after_attention + share * seen["mlp_out", layer]
        assert_near(seen["resid_post", layer], after_mlp, estimated_terms(after_mlp))
        if layer:
            assert torch.equal(seen["resid_pre", layer], seen["resid_post", layer - 1])


HEADLESS = {"qwen3_next", "qwen3_5"}  # linear attention in most layers


@pytest.mark.parametrize("model", sorted(EVERY_ARCHITECTURE.keys() - HEADLESS), indirect=True)
def test_heads_have_the_shapes_of_the_configuration(model: PreTrainedModel) -> None:
    config = text_config(model)
    n_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if config.model_type == "falcon":
        n_kv_heads = {(True, True): 2, (False, True): 1, (False, False): 4}[
            config.new_decoder_architecture, config.multi_query
        ]
    seen = run(model, PAIR.clean, own_attention=True).seen
    heads = {name: seen[name, 0].shape[1] for name in QKV}
    assert heads == {"q": config.num_attention_heads, "k": n_kv_heads, "v": n_kv_heads}
    assert seen["z", 0].shape[-1] == config.num_attention_heads * seen["q", 0].shape[-1]


def _rotate(tensor: Tensor, theta: float, width: int) -> Tensor:
    """Rotary embedding of [head, position, feature]: features i and i + width/2 are one complex number."""
    half = width // 2
    frequencies = theta ** (-torch.arange(half) / half)
    angles = torch.arange(tensor.shape[1])[:, None] * frequencies
    turned = torch.complex(tensor[..., :half], tensor[..., half:width]) * torch.polar(torch.ones(()), angles)
    return torch.cat([turned.real, turned.imag, tensor[..., width:]], dim=-1)


def _llama_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(
        projection(states)[0].unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj)
    )


def _qwen3_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    query, key = _llama_projections(attention, states)
    return attention.q_norm(query), attention.k_norm(key)


def _olmo2_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    flat = attention.q_norm(attention.q_proj(states))[0], attention.k_norm(attention.k_proj(states))[0]
    return tuple(tensor.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for tensor in flat)


def _neox_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    by_head = attention.query_key_value(states)[0].unflatten(-1, (-1, 3, attention.head_size))
    return by_head[:, :, 0].transpose(0, 1), by_head[:, :, 1].transpose(0, 1)


def _gpt2_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    by_kind = attention.c_attn(states)[0].unflatten(-1, (3, -1, attention.head_dim))
    return by_kind[:, 0].transpose(0, 1), by_kind[:, 1].transpose(0, 1)


@pytest.mark.parametrize(
    ("model", "attention", "norm", "projections", "rotary_share"),
    [
        ("llama", "self_attn", "input_layernorm", _llama_projections, 1),
        ("gemma2", "self_attn", "input_layernorm", _llama_projections, 1),
        ("phi", "self_attn", "input_layernorm", _llama_projections, 0.5),
        ("qwen3", "self_attn", "input_layernorm", _qwen3_projections, 1),
        ("gemma3", "self_attn", "input_layernorm", _qwen3_projections, 1),
        ("olmo2", "self_attn", None, _olmo2_projections, 1),
        ("gpt_neox", "attention", "input_layernorm", _neox_projections, 0.5),
        ("gpt2", "attn", "ln_1", _gpt2_projections, 0),
    ],
    indirect=["model"],
)
def test_recorded_queries_and_keys_are_rotated_projections(
    model: PreTrainedModel,
    attention: str,
    norm: str | None,
    projections: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
    rotary_share: float,
) -> None:
    seen = run(model, PAIR.clean, own_attention=True).seen
    for index, layer in enumerate(model.get_submodule(sites_of(model).layers)):
        states = seen["resid_pre", index]
        states = states if norm is None else layer.get_submodule(norm)(states)
        for name, before in zip("qk", projections(layer.get_submodule(attention), states), strict=True):
            rotary = getattr(model.config, "rope_parameters", None) or {"rope_theta": 1.0}
            theta = rotary.get(getattr(model.config, "layer_types", ["-"] * N_LAYERS)[index], rotary)
            width = int(before.shape[-1] * rotary_share)
            rotated = _rotate(before, theta["rope_theta"], width)
            assert_near(seen[name, index][0], rotated, estimated_terms(rotated))
