"""AtP* against a literal implementation by plain torch hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from attrib_batch.errors import ModelError
from attrib_batch.models.load import wrap_model
from attrib_batch.spec import Component
from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESIDUAL = (Component.RESID_PRE, Component.RESID_MID, Component.RESID_POST)
PAIRS = random_pairs(2, 10, 4) + random_pairs(1, 8, 0, seed=1)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_component_of_every_architecture(name: str, direction: str) -> None:
    model, plain = tiny_model(name), ARCHITECTURES[name]()
    components = list(model.architecture.sites)
    ours = score(model, encoded(PAIRS), method(id="atp_star", components=components, direction=direction))
    for index, pair in enumerate(PAIRS):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp_star(plain, pair.clean, pair.corrupted, metric, components, direction=direction)
        assert_same_scores(ours[index], theirs, terms_of(plain, pair))


def _saturated() -> PreTrainedModel:
    """A model whose attention is all or nothing: the gradient on its queries and keys is almost 0.

    It is float64, for attention scores this large make the float32 rounding of a query a visible change of attention.
    """
    model = ARCHITECTURES["llama"]().double()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(8)
            layer.self_attn.k_proj.weight.mul_(8)
    return model


def test_saturated_attention() -> None:
    components = [Component.Q, Component.K]
    pairs = encoded(PAIRS)
    model = wrap_model(_saturated(), tiny_tokenizer())
    ours = score(model, pairs, method(id="atp_star", components=components))
    plain = score(model, pairs, method(components=components))
    for index, pair in enumerate(PAIRS):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp_star(_saturated(), pair.clean, pair.corrupted, metric, components, direction="denoise")
        assert_same_scores(ours[index], theirs, terms_of(_saturated(), pair), dtype="float64")
    # What the fix is for: plain gradients see next to nothing of what a query does here.
    ratio = [np.abs(ours[i][Component.Q]).mean() / np.abs(plain[i][Component.Q]).mean() for i in range(len(PAIRS))]
    assert max(ratio) > 10


@pytest.mark.parametrize("component", Component)
def test_one_component_alone_equals_the_same_among_all(component: Component) -> None:
    model, pairs = tiny_model("llama"), encoded(PAIRS)
    alone = score(model, pairs, method(id="atp_star", components=[component]))
    among = score(model, pairs, method(id="atp_star", components=list(Component)))
    for pair in pairs:
        assert_same_scores(
            alone[pair.pair_id], {component: among[pair.pair_id][component]}, terms_of(model.module, pair)
        )


@pytest.mark.parametrize("name", ["gpt2", "mistral_short_window"])
def test_scores_do_not_depend_on_batching(name: str) -> None:
    model, job = tiny_model(name), method(id="atp_star", components=list(Component))
    pairs = encoded(random_pairs(4, 9, 4) + random_pairs(2, 8, 0, seed=3))
    large = score(model, pairs, job)
    for other in (score(model, pairs, job, batch_tokens=1), score(model, pairs[::-1], job, batch_tokens=40)):
        for pair in pairs:
            assert_same_scores(other[pair.pair_id], large[pair.pair_id], terms_of(model.module, pair))


@pytest.mark.parametrize("name", ["gpt2", "mistral_short_window", "gemma3"])
def test_attention_implementations_agree(name: str) -> None:
    """They are given the mask in different forms, and some not at all."""
    pairs, job = encoded(PAIRS), method(id="atp_star", components=["q", "k"])
    scores = {}
    for implementation in ("eager", "sdpa"):
        model = tiny_model(name)
        model.module.set_attn_implementation(implementation)
        scores[implementation] = score(model, pairs, job)
    for pair in pairs:
        eager, sdpa = (scores[implementation][pair.pair_id] for implementation in ("eager", "sdpa"))
        assert_same_scores(eager, sdpa, terms_of(model.module, pair))


def test_one_layer_has_no_other_to_drop() -> None:
    model = ARCHITECTURES["llama"]()
    config = model.config
    config.num_hidden_layers = 1
    one_layer = wrap_model(type(model)(config), tiny_tokenizer())
    with pytest.raises(ModelError, match="2 layers or more"):
        score(one_layer, encoded(PAIRS[:1]), method(id="atp_star"))
