"""What a family's entry says of its attention and positions is what the model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from attrib_batch.errors import ModelError
from attrib_batch.models.families import architecture_of, dimensions_of
from tests.support.near import estimated_terms, tolerance
from tests.support.tiny_models import EVERY_ARCHITECTURE, MORE_ARCHITECTURES, N_LAYERS

CALLS: list[nn.Module] = []
LENGTH = 6
IDS = torch.arange(20, 20 + LENGTH).unsqueeze(0)


def probe(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
    CALLS.append(module)
    return sdpa_attention_forward(module, query, key, value, mask)


AttentionInterface.register("probe", probe)
AttentionMaskInterface.register("probe", eager_mask)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_attention_goes_through_the_function_of_that_name_or_not(name: str) -> None:
    model = EVERY_ARCHITECTURE[name]()
    architecture = architecture_of(model.config)
    attentions = [
        layer.get_submodule(architecture.attention)
        for layer in model.get_submodule(architecture.layers)
        if hasattr(layer, architecture.attention)
    ]
    CALLS.clear()
    try:
        model.set_attn_implementation("probe")
    except ValueError:  # some models know no function but their own, and say so
        assert not architecture.attention_interface
        return
    with torch.no_grad():
        model(IDS)
    assert architecture.attention_interface == (len(attentions) == N_LAYERS and attentions == CALLS)


def near(logits: Tensor, others: Tensor) -> bool:
    return float((logits - others).abs().max()) <= tolerance(estimated_terms(others))


COUNTED = ("llama4", "llama4_not_normed")
"""Models that take position ids, and count cached keys for something else."""


@pytest.mark.parametrize("name", [name for name in EVERY_ARCHITECTURE if name not in COUNTED])
def test_positions_follow_position_ids_or_not(name: str) -> None:
    model = EVERY_ARCHITECTURE[name]()
    spread = torch.arange(LENGTH).unsqueeze(0) * 3
    with torch.no_grad():
        plain = model(IDS).logits[0, -1]
        follows = not near(model(IDS, position_ids=spread).logits[0, -1], plain)
    assert architecture_of(model.config).takes_position_ids == follows


@pytest.mark.parametrize("name", [*COUNTED, "llama", "mistral3", "opt", "smollm3"])
def test_cached_keys_that_nobody_sees_change_what_is_counted_from_them(name: str) -> None:
    """The same prompt at the same positions, with and without keys in the cache that a mask hides."""
    model, cache = EVERY_ARCHITECTURE[name](), DynamicCache()
    positions = torch.arange(LENGTH, 2 * LENGTH).unsqueeze(0)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    hidden = torch.cat([torch.zeros_like(causal), causal], dim=1)[None, None]
    with torch.no_grad():
        alone = model(IDS, position_ids=positions, attention_mask=causal[None, None], use_cache=False).logits[0, -1]
        model(IDS + 3, past_key_values=cache, use_cache=True)
        behind = model(IDS, position_ids=positions, attention_mask=hidden, past_key_values=cache).logits[0, -1]
    assert architecture_of(model.config).takes_position_ids == near(behind, alone)


def test_a_bloom_that_multiplies_by_slices_is_refused() -> None:
    config = MORE_ARCHITECTURES["bloom"]().config
    config.slow_but_exact, config.pretraining_tp = True, 2
    with pytest.raises(ModelError, match=r"bloom with slow_but_exact .* Set slow_but_exact: false"):
        architecture_of(config)


def test_sizes_that_configurations_state_in_other_ways() -> None:
    sizes = {name: dimensions_of(MORE_ARCHITECTURES[name]().config) for name in MORE_ARCHITECTURES}
    heads = {name: sizes[name].n_kv_heads for name in ("falcon", "falcon_multi_query", "falcon_alibi")}
    assert heads == {"falcon": 2, "falcon_multi_query": 1, "falcon_alibi": 4}
    assert sizes["gemma3_multimodal"] == dimensions_of(MORE_ARCHITECTURES["gemma3_multimodal"]().config.text_config)
    config = MORE_ARCHITECTURES["bloom"]().config
    assert dimensions_of(config).max_tokens == 128
    del config.max_position_embeddings
    assert dimensions_of(config).max_tokens == 2**31 - 1
    config.seq_length = 2048
    assert dimensions_of(config).max_tokens == 2048
