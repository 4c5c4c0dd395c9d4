"""The oracle's gradients against finite differences, completeness, and models in which all else is linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.hooked_run import QKV, run, sites_of
from tests.support.near import assert_near, assert_same_scores
from tests.support.oracle_checks import (
    DIRECTIONS,
    FIRST_DIFFERENCE,
    LENGTH,
    METRIC,
    PAIR,
    each_architecture,
)
from tests.support.terms import terms_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Finite differences


@each_architecture
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_atp_is_the_slope_of_exact(model: PreTrainedModel, direction: oracle.Direction) -> None:
    model = model.double()  # a difference of metrics this near loses half of float32's digits
    components = oracle.component_names(model)
    scores = oracle.atp(model, PAIR.clean, PAIR.corrupted, METRIC, components, direction=direction)
    step = 0.007
    terms = terms_of(model, PAIR) / step
    for name in components if direction == "denoise" else ["z", "k"]:
        ahead, behind = (
            oracle.exact(model, PAIR.clean, PAIR.corrupted, METRIC, name, direction=direction, fraction=fraction)
            for fraction in (step, -step)
        )
        assert np.abs(scores[name]).max() > 0.01
        # The metric's third order remains, times the square of the step.
        slope = {name: (ahead - behind) / (2 * step)}
        assert_same_scores(slope, {name: scores[name]}, terms, dtype="float64", truncation=0.01)


@each_architecture
def test_nothing_differs_before_the_first_difference(model: PreTrainedModel) -> None:
    components = oracle.component_names(model)
    scores = oracle.atp(model, PAIR.clean, PAIR.corrupted, METRIC, components, direction="denoise")
    for name in components:
        assert np.abs(scores[name][:, :, :FIRST_DIFFERENCE]).max() == 0
        assert np.abs(scores[name][:, :, FIRST_DIFFERENCE:]).max() > 0


@pytest.mark.parametrize("model", ["gpt2", "gemma2"], indirect=True)
def test_identical_prompts_score_zero(model: PreTrainedModel) -> None:
    components = oracle.component_names(model)
    pair = (model, PAIR.clean, PAIR.clean, METRIC)
    for scores in (
        oracle.atp(*pair, components, direction="denoise"),
        oracle.atp_ig(*pair, components, direction="noise", ig_steps=2),
        oracle.atp_star(*pair, components, direction="noise"),
        {name: oracle.exact(*pair, name, direction="denoise") for name in components},
    ):
        assert all(not score.any() for score in scores.values())


# Integrated gradients


@each_architecture
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_integrated_gradients_are_complete(model: PreTrainedModel, direction: oracle.Direction) -> None:
    pair = (model, PAIR.clean, PAIR.corrupted, METRIC)
    attributed, total = oracle.embedding_completeness(*pair, direction=direction, ig_steps=30)
    terms = terms_of(model, PAIR)
    assert_near(attributed, total, terms, truncation=0.01)  # what the midpoint rule with so many steps leaves out
    # The first layer's input is the embeddings plus a constant: its scores are the same sum, by position.
    scores = oracle.atp_ig(*pair, ["resid_pre"], direction=direction, ig_steps=30)
    assert_near(scores["resid_pre"][0].sum(), attributed, terms)


# AtP*


def _linear_after_attention() -> PreTrainedModel:
    """One layer, grouped queries, no MLP, no final norm: logits are linear in the attention probabilities."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config).eval()
    model.model.norm = nn.Identity()
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    return model


@pytest.mark.parametrize("component", ["q", "k"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_qk_fix_is_exact_where_all_else_is_linear(component: str, direction: oracle.Direction) -> None:
    # One layer: a query counts at the last position alone, so the prompts must differ there.
    prompts = random_pairs(1, LENGTH, FIRST_DIFFERENCE, changed_share=1)[0]
    pair = (_linear_after_attention(), prompts.clean, prompts.corrupted, METRIC)
    measured = oracle.exact(*pair, component, direction=direction)
    fixed = oracle.atp_star(*pair, [component], direction=direction, grad_drop=False)[component]
    plain = oracle.atp(*pair, [component], direction=direction)[component]
    assert_same_scores({component: fixed}, {component: measured}, terms_of(pair[0], prompts))
    assert np.abs(plain - measured).max() > 0.05 * np.abs(measured).max()


@each_architecture
def test_grad_drop_in_the_last_layer_is_the_absolute_score(model: PreTrainedModel) -> None:
    """Nothing lies behind the last layer, so dropping any other layer leaves its scores as they are."""
    pair = (model, PAIR.clean, PAIR.corrupted, METRIC)
    names = [*QKV, "z", "attn_out", "mlp_out", "resid_post"]
    plain = oracle.atp(*pair, names, direction="denoise")
    dropped = oracle.atp_star(*pair, names, direction="denoise", qk_fix=False)
    for name in names:
        assert_same_scores({name: dropped[name][-1]}, {name: np.abs(plain[name][-1])}, terms_of(model, PAIR))
        assert np.abs(dropped[name][0] - np.abs(plain[name][0])).max() > 1e-3


@pytest.mark.parametrize("model", ["gpt2", "gpt_neox", "gemma3"], indirect=True)
def test_a_dropped_layer_is_a_constant(model: PreTrainedModel) -> None:
    """The gradient with a layer dropped is the slope of a model where that layer adds a constant."""
    model = model.double()
    base = run(model, PAIR.corrupted, own_attention=False, dropped_layer=1)
    slope = torch.autograd.grad(METRIC(base.logits), base.seen["attn_out", 0])[0]
    move = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0)).double()

    sites = sites_of(model)
    layers = model.get_submodule(sites.layers)

    def metric(step: float) -> float:
        hooks = [
            layers[1].get_submodule(site).register_forward_hook(lambda *_, fixed=base.seen[name, 1]: fixed)
            for name, site in (("attn_out", sites.attn_out), ("mlp_out", sites.mlp_out))
        ]
        moved = base.seen["attn_out", 0] + step * move
        hooks.append(layers[0].get_submodule(sites.attn_out).register_forward_hook(lambda *_: moved))
        try:
            with torch.no_grad():
                return METRIC(model(torch.tensor([PAIR.corrupted])).logits[0, -1]).item()
        finally:
            for hook in hooks:
                hook.remove()

    step, expected = 0.01, (slope * move).sum().item()
    found = (metric(step) - metric(-step)) / (2 * step)
    # The metric's third order remains, times the square of the step.
    assert_near(found, expected, terms_of(model, PAIR) / step, dtype="float64", truncation=0.01 * abs(expected))
