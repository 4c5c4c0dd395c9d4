"""Scores against plain torch hooks, one pair at a time: every architecture, component and direction."""

from __future__ import annotations

import pytest
import torch

from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.tutorial import tutorial_pairs
from attrib_batch.spec import Component
from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES

LENGTH, FIRST_DIFFERENCE = 10, 4


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_component_of_every_architecture(name: str, direction: str) -> None:
    model = tiny_model(name)
    components = list(model.architecture.sites)
    pairs = random_pairs(3, LENGTH, FIRST_DIFFERENCE) + random_pairs(2, LENGTH + 2, 0, seed=1)
    ours, plain = (
        score(model, encoded(pairs), method(components=components, direction=direction)),
        ARCHITECTURES[name](),
    )
    for index, pair in enumerate(pairs):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp(plain, pair.clean, pair.corrupted, metric, components, direction=direction)
        assert_same_scores(ours[index], theirs, terms_of(plain, pair))


@pytest.mark.parametrize("component", Component)
def test_one_component_alone_equals_the_same_among_all(component: Component) -> None:
    """The first tensor that is read starts the graph; which one it is must not matter."""
    model = tiny_model("llama")
    pairs = encoded(random_pairs(2, LENGTH, FIRST_DIFFERENCE))
    alone = score(model, pairs, method(components=[component]))
    among = score(model, pairs, method(components=list(Component)))
    for pair in pairs:
        assert_same_scores(
            alone[pair.pair_id], {component: among[pair.pair_id][component]}, terms_of(model.module, pair)
        )


def test_component_an_architecture_lacks_is_refused() -> None:
    from attrib_batch.errors import ModelError

    model = tiny_model("phi")
    with pytest.raises(ModelError, match=r"phi has no resid_mid.*Components it has: resid_pre"):
        model.architecture.site(Component.RESID_MID, model.model_type)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_tutorial_pairs_on_the_bundled_model(smollm2, direction: str) -> None:
    pairs = [
        pair
        for pair in encode_pairs(tutorial_pairs(), smollm2.tokenizer, prepend_bos=False)
        if isinstance(pair, EncodedPair)
    ]
    assert len(pairs) == 8
    ours = score(smollm2, pairs, method(direction=direction))
    for pair in pairs[:4]:
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp(smollm2.module, pair.clean, pair.corrupted, metric, ["z"], direction=direction)
        assert_same_scores(ours[pair.pair_id], theirs, terms_of(smollm2.module, pair))
        assert not ours[pair.pair_id][Component.Z][..., : pair.first_difference].any()
    assert not any(parameter.requires_grad for parameter in smollm2.module.parameters())
    assert torch.is_grad_enabled()
