"""`sequence_logprob_diff`: answers of several tokens, against full forward passes with plain hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attrib_batch.attribution.batches import size_of, suffix_tokens
from attrib_batch.attribution.continuations import with_continuations
from attrib_batch.attribution.engine import TokenBudget, score_pairs
from attrib_batch.attribution.groups import group_methods
from attrib_batch.attribution.memory import MemoryBudget
from attrib_batch.attribution.passes import passes_for
from attrib_batch.attribution.passes.padded import PaddedPasses
from attrib_batch.errors import JobError
from attrib_batch.spec import parse_spec
from tests.support import teacher_forced
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.teacher_forced import COMPONENTS, WholePair, random_pairs_with_answers, whole
from tests.support.tiny_models import ARCHITECTURES

WHOLE = {"metric": "sequence_logprob_diff", "components": list(COMPONENTS)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "mistral_short_window"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_attribution_patching(name: str, direction: str) -> None:
    plain, pairs = ARCHITECTURES[name](), random_pairs_with_answers()
    ours = score(tiny_model(name), whole(pairs), method(direction=direction, **WHOLE))
    for index, pair in enumerate(pairs):
        terms = teacher_forced.terms(plain, pair)
        assert_same_scores(ours[index], teacher_forced.atp(plain, pair, direction=direction), terms)
        for metric, prompt in ((ours[index].clean_metric, pair.clean), (ours[index].corrupted_metric, pair.corrupted)):
            assert_near(metric, teacher_forced.metric(plain, prompt, pair), terms)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_integrated_gradients(name: str) -> None:
    plain, pairs = ARCHITECTURES[name](), random_pairs_with_answers()[1:3]
    job = method(id="atp_ig", ig_steps=3, **WHOLE)
    for batch_tokens in (4096, 20):
        ours = score(tiny_model(name), whole(pairs), job, batch_tokens=batch_tokens)
        for index, pair in enumerate(pairs):
            theirs = teacher_forced.atp(plain, pair, direction="denoise", steps=3)
            assert_same_scores(ours[index], theirs, teacher_forced.terms(plain, pair))


@pytest.mark.parametrize(("name", "direction"), [("gpt2", "denoise"), ("llama", "noise")])
def test_activation_patching(name: str, direction: str) -> None:
    plain, pairs = ARCHITECTURES[name]().double(), random_pairs_with_answers()[1:3]
    ours = score(tiny_model(name, dtype="float64"), whole(pairs), method(id="exact", direction=direction, **WHOLE))
    for index, pair in enumerate(pairs):
        theirs = {c: teacher_forced.exact(plain, pair, c, direction=direction) for c in COMPONENTS}
        assert_same_scores(ours[index], theirs, teacher_forced.terms(plain, pair), dtype="float64")


def test_the_last_position_is_the_prompts_own() -> None:
    model, pairs = tiny_model("llama", dtype="float64"), whole(random_pairs_with_answers()[:3])
    everywhere = score(model, pairs, method(id="exact", **WHOLE))
    (job,) = [method(id="exact", at="last", **WHOLE)]
    for _, outcome in score_pairs(model, pairs, [job], TokenBudget(4096)):
        for index, pair in enumerate(outcome.pairs):
            assert outcome.result.positions[index].tolist() == [pair.n_tokens - 1]
            ours = {name: values[index] for name, values in outcome.result.scores.items()}
            theirs = {name: values[..., -1:] for name, values in everywhere[pair.pair_id].items()}
            assert_same_scores(ours, theirs, everywhere[pair.pair_id].terms, dtype="float64")


@pytest.mark.parametrize("kind", ["atp", "atp_ig", "exact"])
def test_answers_of_one_token_are_logit_diff(kind: str) -> None:
    """Log-probabilities of one place have one normaliser, which drops out of their difference."""
    model, pairs = tiny_model("gemma2", dtype="float64"), random_pairs(3, 8, 4)
    single = score(model, encoded(pairs), method(id=kind))
    same = whole(
        [WholePair(p.clean, p.corrupted, [[a] for a in p.answers], [[a] for a in p.wrong_answers]) for p in pairs]
    )
    for pair_id, ours in score(model, same, method(id=kind, metric="sequence_logprob_diff")).items():
        assert_same_scores(ours, single[pair_id], single[pair_id].terms, dtype="float64")
        assert_near(ours.clean_metric, single[pair_id].clean_metric, single[pair_id].terms, dtype="float64")


def test_scores_do_not_depend_on_batching_or_on_how_suffixes_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny_model("llama"), whole(random_pairs_with_answers())
    one_batch = score(model, pairs, method(**WHOLE))
    others = [score(model, pairs, method(**WHOLE), batch_tokens=1), score(model, pairs[::-1], method(**WHOLE))]
    assert not passes_for(model).padded
    monkeypatch.setattr("attrib_batch.attribution.engine.passes_for", PaddedPasses)
    others.append(score(model, pairs, method(**WHOLE)))
    others.append(score(model, pairs, method(**WHOLE), batch_tokens=40))
    for other in others:
        for pair_id, scores in one_batch.items():
            assert_same_scores(
                other[pair_id], scores, teacher_forced.terms(model.module, random_pairs_with_answers()[pair_id])
            )


def test_methods_of_one_kind_share_passes_only_where_answers_are_alike() -> None:
    groups = group_methods([method(), method(id="a", kind="atp", **WHOLE), method(id="b", kind="atp", metric="kl")])
    assert [[one.id for one in group.methods] for group in groups] == [["atp", "b"], ["a"]]
    assert [group.whole_answers for group in groups] == [False, True]


def test_a_pair_without_whole_answers_is_no_pair_for_them() -> None:
    with pytest.raises(ValueError, match="pair 0 was encoded without whole answers"):
        with_continuations(encoded(random_pairs(1, 8, 4)))


def test_sizes_count_every_answer_and_every_token_that_is_predicted() -> None:
    pair = whole(random_pairs_with_answers())[2]
    # Three answers of two tokens behind both prompts of eight, of which four are shared: five positions each.
    assert suffix_tokens([pair]) == 2 * 3 * 5
    assert size_of([pair], padded=False).rows == size_of([pair], padded=True).rows == 2 * 3 * 2
    assert size_of([pair], padded=True).suffix_tokens == 2 * 3 * 5
    # As it is passed: what a method is given is of the same size.
    parts = with_continuations([pair])
    assert suffix_tokens(parts) == suffix_tokens([pair])
    assert size_of(parts, padded=True) == size_of([pair], padded=True)


def test_a_budget_by_memory_scores_them() -> None:
    model, pairs = tiny_model("gpt2"), whole(random_pairs_with_answers())
    budget = MemoryBudget(torch.device("cpu"))
    (group,) = group_methods([method(**WHOLE)])
    alone = group_methods([method(components=list(COMPONENTS), metric="kl")])[0]
    limits = [budget.limit(passes_for(model), one).model for one in (group, alone)]
    assert limits[0].row == limits[1].row > 0
    found = [outcome for _, outcome in score_pairs(model, pairs, [method(**WHOLE)], budget)]
    assert sum(len(outcome.pairs) for outcome in found) == len(pairs)


def test_a_method_whose_scores_do_not_add_up_is_refused_by_name() -> None:
    data: dict[str, Any] = {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "d.parquet"}],
        "methods": [{"id": "atp_star", "metric": "sequence_logprob_diff"}],
    }
    with pytest.raises(
        JobError, match="scores of kind atp_star do not add up over them; use kind atp or atp_ig or relp or exact"
    ):
        parse_spec(data, source="job")


def test_the_metric_by_hand() -> None:
    """Two places of a vocabulary of two: probabilities of 1/4 and 3/4, then of 9/10 and 1/10."""
    from attrib_batch.attribution.metrics import AnswerSets, sequence_log_prob

    logits = torch.tensor([[[0.0, np.log(3.0)], [np.log(9.0), 0.0]]]).expand(2, 2, 2)
    answers = AnswerSets(
        torch.tensor([[1, 1], [0, 0]]),
        torch.tensor([[True, True], [True, False]]),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.bool),
    )
    # The second answer is one token, which the last place predicts.
    assert_near(sequence_log_prob(logits, logits, answers), np.log([0.75 * 0.1, 0.9]), np.log(9.0))
