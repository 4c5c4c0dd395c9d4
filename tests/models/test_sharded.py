"""Models split over processes: what every rank scores equals what one process with the whole model scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attrib_batch.attribution.engine import TokenBudget, score_pairs
from attrib_batch.attribution.scores import ActivationSums
from attrib_batch.models.load import LoadedModel, load_model
from attrib_batch.models.sharded import parameters_here
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.tutorial import tutorial_pairs
from attrib_batch.spec import Component, MethodSpec, ModelSpec
from tests.support import teacher_forced
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.ranks import Ranks
from tests.support.scored import PairScores, encoded, method, score, score_together
from tests.support.shards import double, model_job, shard
from tests.support.teacher_forced import random_pairs_with_answers, whole
from tests.support.terms import terms_of
from tests.support.tiny_models import VOCABULARY

Scores = dict[int, PairScores]

WITH_PLAN = [
    "gemma2",
    "gemma3",
    "gpt_neox",
    "gpt_neox_sequential",
    "llama",
    "mistral",
    "mistral_short_window",
    "olmo2",
    "phi",
    "qwen2",
    "qwen3",
]
MORE_WITH_PLAN = ["mixtral", "phi3"]
"""Of the families that most tests leave out: experts, and a projection that is gathered to be cut in three."""
KINDS = ["atp", "atp_ig", "atp_star", "relp", "exact", "refined"]
METRICS = ["logit_diff", "prob_diff", "log_prob", "kl"]


# What runs in the ranks.


def score_on_shard(
    model: ModelSpec, shards: int, pairs: list[EncodedPair], methods: list[MethodSpec]
) -> dict[str, Scores]:
    return score_together(shard(model, shards), pairs, methods)


def held(model: ModelSpec, shards: int) -> int:
    loaded = shard(model, shards)
    assert loaded.sharded
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not loaded.module.training
    return parameters_here(loaded)


def assert_equal(group: Ranks, model: ModelSpec, pairs: list[EncodedPair], methods: list[MethodSpec]) -> None:
    """Every rank's scores equal the whole model's."""
    whole = load_model(model)
    assert not whole.sharded
    every = group.run(score_on_shard, model, group.size, pairs, methods)
    assert len(every) == group.size
    for job in methods:
        theirs = score(whole, pairs, job)
        # The other methods take gradients elsewhere too, or none.
        direction = job.direction if job.kind in {"atp", "atp_star", "relp"} else None
        for pair in pairs:
            terms = terms_of(whole.module, pair, job.metric, direction=direction)
            for ours in every:
                assert_same_scores(ours[job.id][pair.pair_id], theirs[pair.pair_id], terms, dtype=model.dtype)


PREFIXED = random_pairs(2, 10, 7)
"""Pairs with a prefix longer than the short window."""


def mixed_pairs() -> list[EncodedPair]:
    """Pairs with such a prefix, and pairs without one."""
    return encoded(PREFIXED + random_pairs(2, 5, 0, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_and_direction_on_every_component(ranks: Ranks, tiny: Callable[[str], Path], kind: str) -> None:
    methods = [
        method(id=f"{metric}-{direction}", kind=kind, components=list(Component), metric=metric, direction=direction)
        for metric in METRICS
        for direction in ("denoise", "noise")
        if not (metric == "kl" and direction == "noise" and kind in {"atp", "atp_star", "relp", "refined"})
    ]
    assert_equal(ranks, double(tiny("llama")), mixed_pairs(), methods)


def test_whole_answers(ranks: Ranks, tiny: Callable[[str], Path]) -> None:
    model, given = double(tiny("llama")), random_pairs_with_answers()
    methods = [
        method(id=kind, kind=kind, metric="sequence_logprob_diff", components=["z", "mlp_out"])
        for kind in ("atp", "atp_ig", "exact")
    ]
    loaded = load_model(model)
    for ours in ranks.run(score_on_shard, model, ranks.size, whole(given), methods):
        for job in methods:
            theirs = score(loaded, whole(given), job)
            for pair_id, pair in enumerate(given):
                terms = teacher_forced.terms(loaded.module, pair)
                assert_same_scores(ours[job.id][pair_id], theirs[pair_id], terms, dtype=model.dtype)


def means_on_shard(model: ModelSpec, shards: int, pairs: list[EncodedPair]) -> list[ActivationSums]:
    return sums_of(shard(model, shards), pairs)


def sums_of(model: LoadedModel, pairs: list[EncodedPair]) -> list[ActivationSums]:
    jobs = [
        MethodSpec.model_construct(
            id=name, kind="mean_activations", components=(Component(name),), metric="logit_diff", direction="noise"
        )
        for name in ("z", "q", "mlp_out")
    ]
    return [outcome.result.sums for _, outcome in score_pairs(model, pairs, jobs, TokenBudget(4096))]


def test_ablations(ranks: Ranks, tiny: Callable[[str], Path]) -> None:
    """Every tensor that is replaced, and all at once for the metric; and the sums that means are made of."""
    model = double(tiny("qwen3"))
    pairs = [replace(pair, corrupted=pair.clean, first_difference=0) for pair in mixed_pairs()]
    methods = [
        method(id=kind, kind=kind, reference="zero", components=["z", "q", "k", "v", "mlp_out"])
        for kind in ("atp", "atp_ig", "exact")
    ]
    loaded = load_model(model)
    every = ranks.run(score_on_shard, model, ranks.size, pairs, methods)
    for job in methods:
        theirs = score(loaded, pairs, job)
        for pair in pairs:
            terms = max(theirs[pair.pair_id].terms, terms_of(loaded.module, pair))
            for ours in every:
                mine = ours[job.id][pair.pair_id]
                assert_same_scores(mine, theirs[pair.pair_id], terms, dtype=model.dtype)
                assert_near(mine.corrupted_metric, theirs[pair.pair_id].corrupted_metric, terms, dtype=model.dtype)
    whole = sums_of(loaded, pairs)
    for found in ranks.run(means_on_shard, model, ranks.size, pairs):
        for mine, others in zip(found, whole, strict=True):
            assert_near(mine.totals, others.totals, np.abs(others.totals).max(), dtype=model.dtype)
            assert_near(mine.entering, others.entering, np.abs(others.entering).max(), dtype=model.dtype)


@pytest.mark.parametrize("name", [*WITH_PLAN, *MORE_WITH_PLAN])
def test_every_component_of_every_architecture(ranks: Ranks, tiny: Callable[[str], Path], name: str) -> None:
    """With the prefix computed once; whole prompts are less, and scored over ranks in the tests of single models."""
    # Grouped products of experts are there in float32 alone.
    model = model_job(tiny(name)) if name == "mixtral" else double(tiny(name))
    components = list(load_model(model).architecture.sites)
    methods = [method(id=kind, kind=kind, components=components) for kind in ("atp", "atp_star", "exact")]
    assert_equal(ranks, model, encoded(PREFIXED), methods)


def test_eager_attention_and_a_start_that_prefixes_share(ranks: Ranks, tiny: Callable[[str], Path]) -> None:
    start = [VOCABULARY.index(f"w{i}") for i in range(20)]
    pairs = encoded(
        [
            TokenPair(start + pair.clean, start + pair.corrupted, pair.answers, pair.wrong_answers)
            for pair in random_pairs(4, 8, 4, seed=2)
        ]
    )
    model = double(tiny("qwen3"), attention="eager")
    assert_equal(ranks, model, pairs, [method(components=list(Component))])


@pytest.mark.parametrize("component", Component)
def test_one_component_alone(ranks: Ranks, tiny: Callable[[str], Path], component: Component) -> None:
    """The first tensor that is read starts the graph; on a shard it may be one that was gathered."""
    assert_equal(ranks, double(tiny("qwen3")), mixed_pairs(), [method(components=[component])])


@pytest.mark.parametrize("name", WITH_PLAN)
def test_a_rank_holds_its_share_of_every_matrix(ranks: Ranks, tiny: Callable[[str], Path], name: str) -> None:
    """Embedding and unembedding too; only what is a vector (norms, biases after a sum) is held by every rank."""
    folder = tiny(name)
    whole = load_model(model_job(folder)).module
    matrices = sum(parameter.numel() for parameter in whole.parameters() if parameter.ndim == 2)
    vectors = sum(parameter.numel() for parameter in whole.parameters() if parameter.ndim == 1)
    for found in ranks.run(held, double(folder), 2):
        assert matrices / 2 < found <= matrices / 2 + vectors


@pytest.mark.slow
def test_the_bundled_model_over_three_ranks(smollm2: LoadedModel) -> None:
    """Nine heads and three of keys and values. Pairs of two templates: each costs every rank 134 million weights."""
    pairs = [
        pair
        for pair in encode_pairs(tutorial_pairs()[::6], smollm2.tokenizer, prepend_bos=False)
        if isinstance(pair, EncodedPair)
    ]
    assert len(pairs) == 2
    methods = [
        method(),
        method(id="noise", kind="atp", components=["q", "k", "v", "mlp_out"], direction="noise", metric="log_prob"),
    ]
    group = Ranks(3)
    model = model_job("smollm2-135m")
    try:
        assert_equal(group, model, pairs, methods)
        assert parameters_here(smollm2) == 134_515_008
        assert group.run(held, model, 3) == [44_861_760] * 3
    finally:
        group.close()
