"""Activation patching against plain torch hooks that replace one activation at a time.

Models are float64: a measured effect is a difference of two metrics, and an effect that is small beside them has lost
in float32 the digits that are compared here. (The oracle in float32 differs as much from itself in float64.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from attrib_batch.attribution.methods.exact import activation_patching
from attrib_batch.spec import Component
from tests.support import oracle
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES

if TYPE_CHECKING:
    from attrib_batch.models.load import LoadedModel


def _double(name: str) -> LoadedModel:
    return tiny_model(name, dtype="float64")


def _compare(name: str, pair: TokenPair, direction: str) -> None:
    model = _double(name)
    components = list(model.architecture.sites)
    ours = score(model, encoded([pair]), method(id="exact", components=components, direction=direction))[0]
    metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
    plain = ARCHITECTURES[name]().double()
    theirs = {
        component: oracle.exact(plain, pair.clean, pair.corrupted, metric, component, direction=direction)
        for component in components
    }
    assert_same_scores(ours, theirs, terms_of(plain, pair), dtype="float64")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_component_of_every_architecture(name: str) -> None:
    [pair] = random_pairs(1, 9, 4)
    _compare(name, pair, "denoise")


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_noise_without_a_shared_prefix(name: str) -> None:
    [pair] = random_pairs(1, 8, 0, seed=1)
    _compare(name, pair, "noise")


@pytest.mark.parametrize("name", ["llama", "mistral_short_window"])
def test_scores_do_not_depend_on_batching(name: str) -> None:
    model, job = _double(name), method(id="exact", components=list(Component))
    pairs = encoded(random_pairs(3, 9, 4) + random_pairs(2, 8, 0, seed=3))
    large = score(model, pairs, job)
    for other in (score(model, pairs, job, batch_tokens=50), score(model, pairs[::-1], job, batch_tokens=1)):
        for pair in pairs:
            terms = terms_of(model.module, pair)
            assert_same_scores(other[pair.pair_id], large[pair.pair_id], terms, dtype="float64")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi"])
def test_replacing_all_that_differs_gives_the_other_run(name: str, direction: str) -> None:
    """Known without an oracle: the last residual stream is all the logits see, and one token all that enters."""
    pair = random_pairs(1, 9, 4, changed_share=0)[0]
    job = method(id="exact", components=["resid_pre", "resid_post"], direction=direction)
    model = _double(name)
    result = activation_patching(model, encoded([pair]), job, batch_tokens=4096)
    whole = (result.clean_metric - result.corrupted_metric) * (1 if direction == "denoise" else -1)
    terms = terms_of(model.module, pair)
    assert_near(result.scores[Component.RESID_POST][:, -1, 0, -1], whole, terms, dtype="float64")
    assert_near(result.scores[Component.RESID_PRE][:, 0, 0, 0], whole, terms, dtype="float64")


def test_identical_prompts_have_no_effect() -> None:
    [pair] = random_pairs(1, 8, 3)
    same = TokenPair(pair.clean, pair.clean, pair.answers, pair.wrong_answers)
    model = _double("gpt2")
    for values in score(model, encoded([same]), method(id="exact", components=list(Component)))[0].values():
        nothing = np.zeros_like(values)
        assert_near(values, nothing, terms_of(model.module, same), dtype="float64", float32_steps=0)


def test_the_model_is_left_as_it_was() -> None:
    model = _double("llama")
    pairs = encoded(random_pairs(2, 9, 4))
    before = score(model, pairs, method())
    score(model, pairs, method(id="exact", components=list(Component)))
    after = score(model, pairs, method())
    for pair in pairs:
        assert_same_scores(after[pair.pair_id], before[pair.pair_id], terms_of(model.module, pair), dtype="float64")
