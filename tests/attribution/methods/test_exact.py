"""Activation patching against plain torch hooks that replace one activation at a time.

Models are float64: a measured effect is a difference of two metrics, and an effect that is small beside them has lost
in float32 the digits that are compared here. (The oracle in float32 differs as much from itself in float64.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.methods.exact import activation_patching
from attrib_batch.attribution.passes import Layout
from attrib_batch.attribution.passes.packed import PackedPasses
from attrib_batch.spec import Component
from attrib_batch.spec.positions import positions_asked
from tests.support import oracle
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, score_alike, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES

if TYPE_CHECKING:
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral_short_window"])
def test_scores_do_not_depend_on_batching(name: str) -> None:
    """Row by row it is a forward pass for every score, and the slowest of all tests: so from one pair of each shape."""
    model, job = _double(name), method(id="exact", components=["z", "k", "resid_mid", "mlp_out"])
    pairs = encoded(random_pairs(3, 9, 5) + random_pairs(2, 8, 0, seed=3))
    large = score(model, pairs, job)
    alone = [pairs[2], pairs[3]]
    for others, batch_tokens in ((pairs[::-1], 50), (alone, 1)):
        found = score(model, others, job, batch_tokens=batch_tokens)
        for pair in others:
            terms = terms_of(model.module, pair)
            assert_same_scores(found[pair.pair_id], large[pair.pair_id], terms, dtype="float64")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi"])
def test_replacing_all_that_differs_gives_the_other_run(name: str, direction: str) -> None:
    """Known without an oracle: the last residual stream is all the logits see, and one token all that enters."""
    pair = random_pairs(1, 9, 4, changed_share=0)[0]
    job = method(id="exact", components=["resid_pre", "resid_post"], direction=direction)
    model = _double(name)
    result = score_alike(activation_patching, model, encoded([pair]), job)
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


def _with_roles(pairs: list[EncodedPair]) -> list[EncodedPair]:
    """Roles that differ between pairs of 9 tokens: IO twice, once, once before the first difference, and nowhere."""
    of_pairs = [
        {5: "IO", 7: "IO", 6: "S2"},
        {6: "IO", 8: "end"},
        {1: "IO", 7: "S2", 8: "end"},
        {3: "S1"},
    ]
    return [
        replace(pair, roles=tuple(roles.get(position) for position in range(9)))
        for pair, roles in zip(pairs, of_pairs, strict=True)
    ]


@pytest.mark.parametrize("at", ["last", "IO", ["S2", "end"]])
@pytest.mark.parametrize("batch_tokens", [4096, 40])
def test_only_the_positions_asked_for_are_scored(at: str | list[str], batch_tokens: int) -> None:
    model = _double("llama")
    pairs = _with_roles(encoded(random_pairs(4, 9, 4)))
    components = ["z", "k", "resid_mid"]
    everywhere = score(model, pairs, method(id="exact", components=components))
    job = method(id="exact", components=components, at=at)
    seen = set()
    for _, outcome in score_pairs(model, pairs, [job], TokenBudget(batch_tokens)):
        assert isinstance(outcome, ScoredBatch)
        assert outcome.result.positions is not None
        for index, pair in enumerate(outcome.pairs):
            terms, whole = terms_of(model.module, pair), everywhere[pair.pair_id]
            assert_near(outcome.result.clean_metric[index], whole.clean_metric, terms, dtype="float64")
            mine = [p for p in outcome.result.positions[index].tolist() if p >= 0]
            assert mine == positions_asked(job.parameters["at"], pair.roles)
            scores = {name: values[index] for name, values in outcome.result.scores.items()}
            differ = [place for place, position in enumerate(mine) if position >= pair.first_difference]
            assert all((values[..., : len(mine) - len(differ)] == 0).all() for values in scores.values())
            if differ:
                ours = {name: values[..., differ] for name, values in scores.items()}
                theirs = {name: values[..., [mine[place] for place in differ]] for name, values in whole.items()}
                assert_same_scores(ours, theirs, terms, dtype="float64")
            seen.add(pair.pair_id)
    assert seen == {0, 1, 2, 3}


def test_the_last_position_against_plain_hooks_costs_one_token_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = _double("gemma3"), ARCHITECTURES["gemma3"]().double()
    [pair] = random_pairs(1, 9, 4)
    computed: list[tuple[int, int]] = []
    forward = PackedPasses.forward

    def counted(self: PackedPasses, layout: Layout, sites: object, **options: object) -> object:
        if "edits" in options:
            computed.append((len(layout.rows), layout.n_tokens))
        return forward(self, layout, sites, **options)

    monkeypatch.setattr(PackedPasses, "forward", counted)
    job = method(id="exact", components=["z", "mlp_out"], at="last")
    [(_, outcome)] = score_pairs(model, encoded([pair]), [job], TokenBudget(4096))
    assert computed == [(5, 5)] * 3, "four heads and one MLP, of one token each, at each layer"
    assert isinstance(outcome, ScoredBatch)
    ours = {name: values[0] for name, values in outcome.result.scores.items()}
    metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
    theirs = {
        name: oracle.exact(plain, pair.clean, pair.corrupted, metric, name, direction="denoise")[..., -1:]
        for name in job.components
    }
    assert_same_scores(ours, theirs, terms_of(plain, pair), dtype="float64")
