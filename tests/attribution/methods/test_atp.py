"""What attribution patching must hold to, beside the oracle: sign, scale, zeros, independence of batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attrib_batch.attribution.batches import Request, plan_rows
from attrib_batch.attribution.engine import FailedPair, ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.methods.atp import attribution_patching
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.tables import FailureReason
from tests.support import oracle
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_gradient_sign_and_scale_by_finite_difference(name: str) -> None:
    """Moving an activation a little of the way changes the metric by that share of the score (central difference)."""
    [pair] = random_pairs(1, 8, 3)
    ours = score(tiny_model(name, dtype="float64"), encoded([pair]), method())[0]
    metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
    model, fraction = ARCHITECTURES[name]().double(), 0.01
    there, back = (
        oracle.exact(model, pair.clean, pair.corrupted, metric, "z", direction="denoise", fraction=step)
        for step in (fraction, -fraction)
    )
    slope = {Component.Z: (there - back) / (2 * fraction)}
    terms = terms_of(model, pair) / fraction
    # The metric's third order remains, times the square of the fraction.
    assert_same_scores(ours, slope, terms, dtype="float64", truncation=2e-3)


def test_case_computed_by_hand() -> None:
    """A Llama without MLPs, prompts of one token, and attention outputs scaled down to c.

    With one token attention sees only itself, so z = v = W_v n(x), n being the RMS norm. With c = 0 nothing reaches the
    logits and every score is 0; near 0 the scores grow in proportion to c, and can be written down.
    """
    [pair] = [TokenPair(clean=[20], corrupted=[30], answers=[2], wrong_answers=[3])]
    scores, terms = {}, 0.0
    for scale in (0.0, 1e-4, 2e-4):
        model = tiny_model("llama", dtype="float64")  # or rounding in the logits would be visible beside such scores
        for layer in model.module.model.layers:
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.zero_()
        scores[scale] = score(model, encoded([pair]), method())[0][Component.Z]
        terms = max(terms, terms_of(model.module, pair))
    assert not scores[0.0].any()
    first_order = 2 * scores[1e-4]
    assert_near(scores[2e-4], first_order, terms, dtype="float64", truncation=1e-2 * np.abs(first_order))

    # By hand, for c = 1e-4: the corrupted run's residual stream is (almost) the embedding e = E[30]; its logits are
    # U (w * x / rms(x)); the gradient on x of logit 2 - logit 3 is J' w (U[2] - U[3]) with J the norm's Jacobian
    # (I - y y' / d) / rms, y = x / rms. z = v(clean) - v(corrupted), and dx/dz = c W_o.
    model = tiny_model("llama").module
    e = {token: model.model.embed_tokens.weight[token].double() for token in (20, 30)}
    eps, d, last = model.config.rms_norm_eps, model.config.hidden_size, model.model.layers[-1]

    def rms(x: torch.Tensor) -> torch.Tensor:
        return (x.square().mean() + eps).sqrt()

    y = e[30] / rms(e[30])
    upstream = model.model.norm.weight.double() * (model.lm_head.weight[2] - model.lm_head.weight[3]).double()
    gradient_x = (upstream - y * (y @ upstream) / d) / rms(e[30])
    gradient_z = 1e-4 * last.self_attn.o_proj.weight.double().T @ gradient_x
    norm = last.input_layernorm.weight.double()
    v = {token: last.self_attn.v_proj.weight.double() @ (norm * x / rms(x)) for token, x in e.items()}
    difference = (v[20] - v[30]).view(2, 1, -1).expand(2, 2, -1).reshape(4, -1)
    by_hand = (gradient_z.view(4, -1) * difference).sum(-1)
    assert_near(scores[1e-4][-1, :, 0], by_hand, terms, dtype="float64", truncation=1e-2 * by_hand.abs().cpu().numpy())


def test_identical_prompts_score_exactly_zero() -> None:
    [pair] = random_pairs(1, 8, 3)
    same = TokenPair(pair.clean, pair.clean, pair.answers, pair.wrong_answers)
    scores = score(tiny_model("gpt2"), encoded([same]), method(components=["z", "mlp_out", "resid_pre"]))[0]
    assert not any(values.any() for values in scores.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_prefix_scores_exactly_zero_and_the_rest_does_not(name: str) -> None:
    pairs = encoded(random_pairs(3, 9, 5))
    for scores in score(tiny_model(name), pairs, method()).values():
        assert not scores[Component.Z][..., :5].any()
        assert np.abs(scores[Component.Z][..., 5:]).max() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral_short_window", "gemma3"])
def test_scores_do_not_depend_on_batching_or_order(name: str) -> None:
    model = tiny_model(name)
    pairs = encoded(random_pairs(5, 9, 4) + random_pairs(4, 11, 6, seed=3))
    one_batch = score(model, pairs, method())
    for other in (
        score(model, pairs, method(), batch_tokens=1),
        score(model, pairs, method(), batch_tokens=25),
        score(model, pairs[::-1], method()),
    ):
        for pair in pairs:
            assert_same_scores(other[pair.pair_id], one_batch[pair.pair_id], terms_of(model.module, pair))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_pairs_and_their_mirrors_share_runs_without_changing_scores(direction: str) -> None:
    """In a batch with its mirror every prompt is run once; apart, twice."""
    model = tiny_model("llama")
    plain = random_pairs(3, 9, 4)
    mirrored = [*plain, *(TokenPair(p.corrupted, p.clean, p.wrong_answers, p.answers) for p in plain)]
    together = score(model, encoded(mirrored), method(direction=direction))
    for pair in encoded(mirrored):
        alone = score(model, [pair], method(direction=direction))
        assert_same_scores(together[pair.pair_id], alone[pair.pair_id], terms_of(model.module, pair))


def test_methods_together_score_as_they_do_alone() -> None:
    """Both directions, another metric and other components, in one forward and one backward pass."""
    model, pairs = tiny_model("llama"), encoded(random_pairs(4, 9, 4))
    methods = [
        method(),
        method(id="noise", kind="atp", direction="noise"),
        method(id="prob", kind="atp", metric="prob_diff", components=["mlp_out", "z"]),
        method(id="kl", kind="atp", metric="kl", components=["q"]),
    ]
    for job, outcome in score_pairs(model, pairs, methods, TokenBudget(4096)):
        alone = score(model, pairs, job)
        for index, pair in enumerate(outcome.pairs):
            theirs = {of: values[..., pair.first_difference :] for of, values in alone[pair.pair_id].items()}
            ours = {of: values[index] for of, values in outcome.result.scores.items()}
            assert_same_scores(ours, theirs, terms_of(model.module, pair, job.metric))


def test_both_directions_together_run_each_prompt_once() -> None:
    pairs = encoded(random_pairs(4, 9, 4))
    rows = plan_rows(pairs, [Request("denoise", "logit_diff"), Request("noise", "logit_diff")])
    assert len(rows.graph) == 8
    assert rows.plain == []
    assert len(plan_rows(pairs, [Request("denoise", "logit_diff")]).plain) == 4


def test_running_out_of_memory_halves_the_batches_and_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory cannot be produced on demand, so the method raises what torch would."""
    model, pairs = tiny_model("llama"), encoded(random_pairs(8, 9, 4))
    expected = score(model, pairs, method())
    sizes: list[int] = []

    def limited(model: object, pairs: list[EncodedPair], methods: object, **options: object) -> object:
        sizes.append(len(pairs))
        if len(pairs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attribution_patching(model, pairs, methods, **options)

    monkeypatch.setattr("attrib_batch.attribution.methods.atp.attribution_patching", limited)
    budget = TokenBudget(4096)
    outcomes = [outcome for _, outcome in score_pairs(model, pairs, [method()], budget)]
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert budget.tokens == 2 * 2 * 5
    for outcome in outcomes:
        assert isinstance(outcome, ScoredBatch)
        for index, pair in enumerate(outcome.pairs):
            ours = {Component.Z: outcome.result.scores[Component.Z][index]}
            theirs = {Component.Z: expected[pair.pair_id][Component.Z][..., pair.first_difference :]}
            assert_same_scores(ours, theirs, terms_of(model.module, pair))
    sizes.clear()
    list(score_pairs(model, pairs, [method()], budget))
    assert sizes == [2, 2, 2, 2]


def test_a_single_pair_that_does_not_fit_is_tried_smaller_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    budget = TokenBudget(64)

    def never(*_: object, **options: object) -> None:
        tried.append(budget.tokens)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("attrib_batch.attribution.methods.atp.attribution_patching", never)
    [(_, failure)] = score_pairs(tiny_model("llama"), encoded(random_pairs(1, 9, 4)), [method()], budget)
    assert isinstance(failure, FailedPair)
    assert "out of memory" in failure.message
    assert tried == [64, 5]


def test_equal_base_prompts_with_different_answers_are_not_merged() -> None:
    model = tiny_model("llama")
    [pair] = random_pairs(1, 9, 4)
    swapped = TokenPair(pair.clean, pair.corrupted, pair.wrong_answers, pair.answers)
    scores = score(model, encoded([pair, swapped]), method())
    assert_same_scores(scores[1], {Component.Z: -scores[0][Component.Z]}, terms_of(model.module, pair))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    shapes=st.lists(st.tuples(st.integers(2, 9), st.integers(0, 8)), min_size=1, max_size=4),
    batch_tokens=st.integers(1, 64),
)
def test_every_pair_is_scored_once(seed: int, shapes: list[tuple[int, int]], batch_tokens: int) -> None:
    pairs = [
        pair
        for index, (length, first) in enumerate(shapes)
        for pair in random_pairs(2, length, min(first, length - 1), seed=seed + index)
    ]
    scores = score(_LLAMA, encoded(pairs), method(), batch_tokens=batch_tokens)
    assert len(scores) == len(pairs)


_LLAMA = tiny_model("llama")


def test_a_pair_that_raises_costs_no_other_its_scores() -> None:
    model = tiny_model("llama")
    pairs = encoded(random_pairs(5, 9, 4))
    poison = pairs[2]
    bad_answer = 1 << 70  # no tensor takes it; a token beyond the vocabulary would cost a GPU's whole process
    pairs[2] = type(poison)(**{**vars(poison), "answers": (bad_answer,)})
    outcomes = [outcome for _, outcome in score_pairs(model, pairs, [method()], TokenBudget(4096))]
    [failure] = [outcome for outcome in outcomes if isinstance(outcome, FailedPair)]
    assert failure.pair.pair_id == 2
    assert failure.reason is FailureReason.SCORING_ERROR
    assert failure.attempts > 1
    scored = [pair.pair_id for o in outcomes if not isinstance(o, FailedPair) for pair in o.pairs]
    assert sorted(scored) == [0, 1, 3, 4]


def test_a_non_finite_score_is_a_failure_and_never_a_row() -> None:
    model = tiny_model("llama")
    pairs = encoded(random_pairs(3, 9, 4))
    poisoned_token = pairs[1].clean[-1]
    assert all(poisoned_token not in (*p.clean[-5:], *p.corrupted) for p in (pairs[0], pairs[2]))
    model.module.model.embed_tokens.weight.data[poisoned_token] = float("nan")
    outcomes = [outcome for _, outcome in score_pairs(model, pairs, [method()], TokenBudget(4096))]
    failures = [outcome for outcome in outcomes if isinstance(outcome, FailedPair)]
    assert [f.pair.pair_id for f in failures] == [1]
    assert failures[0].reason is FailureReason.NON_FINITE
