"""Second orders against finite differences by plain torch hooks."""

from __future__ import annotations

import numpy as np
import pytest

from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.methods.atp_hvp import Signs
from attrib_batch.models.load import LoadedModel, wrap_model
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from tests.support import oracle
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.near import assert_same_scores
from tests.support.scored import encoded, in_type, method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES, EVERY_ARCHITECTURE, tiny_tokenizer
from tests.support.truly_double import compute_in_double

TRUNCATION = 1e-4
"""What a finite difference may be off by, as a share of a component's largest score: its step is 3e-5."""
MORE = ("gptj", "falcon", "opt", "gpt_oss", "qwen3_next", "mixtral")
"""Of the families that most tests leave out: padded rows, attention of a model's own, sinks, a state, experts."""


def signs_of(model: LoadedModel, pair: EncodedPair, component: Component, probe: int = 0) -> np.ndarray:
    """The signs of all nodes [layer, head, position]; 0 at the positions that both prompts share."""
    signs = Signs.of([pair], Entries.of([pair]))
    n_heads = model.dimensions.heads_of(component) or 1
    layers = [signs.at_layer(probe, component, layer, n_heads).T for layer in range(model.dimensions.n_layers)]
    return np.pad(np.stack(layers), ((0, 0), (0, 0), (pair.first_difference, 0))).astype(np.float64)


def finite_differences(model: LoadedModel, plain: object, pair: EncodedPair, tokens: TokenPair, direction: str) -> dict:
    metric = oracle.logit_diff(tokens.answers, tokens.wrong_answers)
    return {
        name: oracle.atp_hvp(
            plain, tokens.clean, tokens.corrupted, metric, name, signs=signs_of(model, pair, name), direction=direction
        )
        for name in model.architecture.sites
    }


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
def test_every_component_of_every_architecture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_model(name, dtype="float64"), in_type(EVERY_ARCHITECTURE[name](), "float64")
    compute_in_double(plain, monkeypatch)
    tokens = random_pairs(1, 9, 4)
    [pair] = encoded(tokens)
    ours = score(model, [pair], method(id="atp_hvp", probes=1, components=list(model.architecture.sites)))[0]
    theirs = finite_differences(model, plain, pair, tokens[0], "denoise")
    assert_same_scores(ours, theirs, terms_of(plain, pair), dtype="float64", truncation=TRUNCATION)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_noise_without_a_shared_prefix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_model(name, dtype="float64"), ARCHITECTURES[name]().double()
    compute_in_double(plain, monkeypatch)
    tokens = random_pairs(1, 7, 0, seed=1)
    [pair] = encoded(tokens)
    job = method(id="atp_hvp", probes=1, components=list(model.architecture.sites), direction="noise")
    theirs = finite_differences(model, plain, pair, tokens[0], "noise")
    assert_same_scores(
        score(model, [pair], job)[0], theirs, terms_of(plain, pair), dtype="float64", truncation=TRUNCATION
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_node_alone_has_its_own_second_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no other node there are no cross terms: it is the curvature of what activation patching does to the metric.

    In a model of one layer, a component without heads has one node where prompts differ in their last token alone.
    """
    plain = ARCHITECTURES[name](num_hidden_layers=1).double()
    compute_in_double(plain, monkeypatch)
    model = wrap_model(plain, tiny_tokenizer())
    [tokens] = random_pairs(1, 6, 5)
    [pair] = encoded([tokens])
    components = [c for c in model.architecture.sites if not c.has_heads]
    ours = score(model, [pair], method(id="atp_hvp", components=components))[0]
    metric, step = oracle.logit_diff(tokens.answers, tokens.wrong_answers), 2e-4
    theirs = {}
    for component in components:
        there, back = (
            oracle.exact(
                plain, tokens.clean, tokens.corrupted, metric, component, direction="denoise", fraction=fraction
            )
            for fraction in (step, -step)
        )
        theirs[component] = (there - back) / (2 * step) + (there + back) / step**2 / 2
    assert_same_scores(ours, theirs, terms_of(plain, pair), dtype="float64", truncation=TRUNCATION)


def test_more_probes_come_nearer_to_the_second_order_of_each_node_alone() -> None:
    """Cross terms average to 0: what is left of them after 256 probes is an eighth of what is left after 4, or so."""
    model, plain = tiny_model("gpt2", dtype="float64"), ARCHITECTURES["gpt2"]().double()
    [tokens] = random_pairs(1, 7, 4)
    metric, step = oracle.logit_diff(tokens.answers, tokens.wrong_answers), 2e-4
    there, back = (
        oracle.exact(plain, tokens.clean, tokens.corrupted, metric, "z", direction="denoise", fraction=fraction)
        for fraction in (step, -step)
    )
    alone = (there - back) / (2 * step) + (there + back) / step**2 / 2
    few, many = (
        score(model, encoded([tokens]), method(id="atp_hvp", probes=probes))[0][Component.Z] - alone
        for probes in (4, 256)
    )
    assert np.sqrt((many**2).mean()) < np.sqrt((few**2).mean()) / 4


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_scores_do_not_depend_on_batching(name: str) -> None:
    model = tiny_model(name, dtype="float64")
    pairs = encoded(random_pairs(3, 9, 4) + random_pairs(2, 8, 0, seed=3))
    job = method(id="atp_hvp", components=["z", "resid_post", "k"], probes=2)
    large = score(model, pairs, job)
    for other in (score(model, pairs, job, batch_tokens=1), score(model, pairs[::-1], job, batch_tokens=33)):
        for pair in pairs:
            terms = terms_of(model.module, pair)
            assert_same_scores(other[pair.pair_id], large[pair.pair_id], terms, dtype="float64", truncation=1e-6)


def test_identical_prompts_and_shared_prefixes_score_nothing() -> None:
    model = tiny_model("llama")
    [tokens] = random_pairs(1, 8, 3)
    [pair] = encoded([tokens])
    scores = score(model, [pair], method(id="atp_hvp", components=list(Component)))[0]
    assert all(not values[..., : pair.first_difference].any() for values in scores.values())
    same = encoded([TokenPair(tokens.clean, tokens.clean, tokens.answers, tokens.wrong_answers)])
    assert all(
        not values.any() for values in score(model, same, method(id="atp_hvp", components=list(Component)))[0].values()
    )
