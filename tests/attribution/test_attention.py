"""What is read of a model's attention gives the probabilities and outputs that the model itself computes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from attrib_batch.attribution.attention import Attention, read_attention
from tests.support.demo_pairs import random_pairs
from tests.support.hooked_run import run
from tests.support.near import assert_near
from tests.support.scored import tiny_model
from tests.support.tiny_models import ARCHITECTURES, EVERY_ARCHITECTURE, N_HEADS, N_KV_HEADS, N_LAYERS, SHORT_WINDOW

LENGTH = 11
ROWS = [tuple(prompt) for pair in random_pairs(2, LENGTH, 4) for prompt in (pair.clean, pair.corrupted)]
PREFIXES = (0, 4, LENGTH - 1)
"""None, one that is computed apart, and all but the last position."""
SLIDING = {"mistral_short_window": {0, 1, 2}, "gemma2": {0, 2}, "gemma3": {0, 2}}
"""By architecture the layers that see the last few positions alone."""
WITHOUT_GROUPS = {"gpt2", "gpt_neox", "gpt_neox_sequential"}


@cache
def read(name: str, prefix: int) -> list[Attention]:
    model = tiny_model(name)
    return read_attention(model, ROWS, prefix)


@cache
def eager(name: str) -> tuple[Tensor, ...]:
    """The probabilities of every layer, [row, head, position, source], as transformers' plain attention gives them."""
    model = EVERY_ARCHITECTURE[name]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(torch.tensor(ROWS), output_attentions=True).attentions
    return found


def probabilities(layer: Attention) -> Tensor:
    return (layer.scores(layer.query, layer.key) + layer.mask).softmax(-1)


def size_of(layer: Attention) -> float:
    """What is added up in a probability: a score's rounding is a share of it, and one is the most that it can be."""
    return 1 + float(layer.scores(layer.query, layer.key).abs().max())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_probabilities_are_those_of_eager_attention(name: str, prefix: int) -> None:
    layers = read(name, prefix)
    assert len(layers) == N_LAYERS
    for layer, theirs in zip(layers, eager(name), strict=True):
        ours = probabilities(layer)
        n_sources = ours.shape[-1]
        assert ours.shape == (len(ROWS), N_HEADS, LENGTH - prefix, n_sources)
        assert layer.n_cached == n_sources - (LENGTH - prefix)
        assert_near(ours, theirs[:, :, prefix:, -n_sources:], size_of(layer))
        assert not theirs[:, :, prefix:, :-n_sources].any(), "a source that is not read is one that nobody sees"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_position_sees_a_later_one_nor_one_beyond_the_window(name: str, prefix: int) -> None:
    for number, layer in enumerate(read(name, prefix)):
        seen = (layer.mask == 0).expand(len(ROWS), -1, -1, -1)[:, 0]
        assert ((layer.mask == 0) | layer.mask.isneginf()).all()
        position = torch.arange(prefix, LENGTH)[:, None]
        source = torch.arange(LENGTH - seen.shape[-1], LENGTH)[None]
        expected = source <= position
        if number in SLIDING.get(name, ()):
            assert LENGTH > SHORT_WINDOW
            expected = expected & (source > position - SHORT_WINDOW)
        assert (seen == expected).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_weighted_by_probabilities_are_the_heads_outputs(name: str) -> None:
    prefix = 4
    model = ARCHITECTURES[name]()
    seen = [run(model, row, own_attention=False).seen for row in ROWS]
    for number, layer in enumerate(read(name, prefix)):
        ours = (probabilities(layer) @ layer.value).transpose(1, 2).flatten(-2)
        theirs = torch.stack([found["z", number].reshape(LENGTH, -1)[prefix:] for found in seen])
        assert_near(ours, theirs, size_of(layer) * float(layer.value.abs().max()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_values_are_repeated_for_the_query_heads_that_they_serve(name: str) -> None:
    n_kv_heads = N_HEADS if name in WITHOUT_GROUPS else N_KV_HEADS
    served = N_HEADS // n_kv_heads
    for layer in read(name, 4):
        assert layer.n_kv_heads == n_kv_heads
        for of_head in (layer.key, layer.value):
            assert of_head.shape[1] == layer.query.shape[1] == N_HEADS
            groups = of_head.unflatten(1, (n_kv_heads, served))
            assert (groups == groups[:, :, :1]).all()
            assert not torch.equal(groups[:, 0], groups[:, 1])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["gpt_oss", "llama4_not_normed", "opt"])
def test_sinks_chunks_and_scaled_queries_are_those_of_eager_attention(name: str, prefix: int) -> None:
    """Sinks come first, take a share of the probabilities, and give nothing."""
    for layer, theirs in zip(read(name, prefix), eager(name), strict=True):
        n_sinks = int(name == "gpt_oss")
        assert layer.key.shape[2] == layer.value.shape[2] == layer.mask.shape[3] == layer.n_cached + LENGTH - prefix
        assert not layer.value[:, :, :n_sinks].any()
        ours = probabilities(layer)[..., n_sinks:]
        assert_near(ours, theirs[:, :, prefix:, -ours.shape[-1] :], size_of(layer))
        assert bool(n_sinks) == bool(ours.sum(-1).min() < 1 - 1e-3)


def test_a_soft_cap_bounds_the_scores_before_the_mask() -> None:
    for layer in read("gemma2", 0):
        assert layer.softcap == 3.0
        assert layer.scores(100 * layer.query, layer.key).abs().max() <= layer.softcap


def test_narrow_models_are_read_in_float32() -> None:
    model = tiny_model("mistral_short_window", dtype="bfloat16")
    for layer in read_attention(model, ROWS, 4):
        assert {part.dtype for part in (layer.query, layer.key, layer.value, layer.mask)} == {torch.float32}
        assert layer.mask.isneginf().any(), "the smallest number of a narrow type is no minus infinity in a wider one"
        assert ((layer.mask == 0) | layer.mask.isneginf()).all()
