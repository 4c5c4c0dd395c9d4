"""Refined attribution patching: what is measured is exact, what is not is atp, and who decides which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attrib_batch.attribution.engine import FailedPair, ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.methods.refined import choose
from attrib_batch.attribution.patching import Patcher
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.models.families import Dimensions
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component, MethodSpec
from attrib_batch.tables import FailureReason
from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near
from tests.support.scored import encoded, in_type, method, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import EVERY_ARCHITECTURE

Z = Component.Z


def refine(
    model: LoadedModel, pairs: Sequence[EncodedPair], *, batch_tokens: int = 4096, **options: Any
) -> dict[int, tuple[dict[Component, np.ndarray], dict[Component, np.ndarray]]]:
    """Scores and estimates of every pair (layer, head, suffix position); fails if a pair could not be scored."""
    found = {}
    job = method(id="refined", **options)
    for _, outcome in score_pairs(model, pairs, [job], TokenBudget(batch_tokens)):
        assert isinstance(outcome, ScoredBatch), outcome
        estimates = outcome.result.estimates
        assert estimates is not None
        for index, pair in enumerate(outcome.pairs):
            found[pair.pair_id] = tuple(
                {name: values[index] for name, values in of.items()} for of in (outcome.result.scores, estimates)
            )
    assert set(found) == {pair.pair_id for pair in pairs}
    return found


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mistral_short_window", "falcon"])
def test_what_is_measured_is_exact_and_the_rest_is_estimated(name: str, direction: str) -> None:
    """Beside plain hooks. Falcon's rows are padded, the others packed; one pair has a prefix and one has none."""
    model, plain = tiny_model(name, dtype="float64"), in_type(EVERY_ARCHITECTURE[name](), "float64")
    components = ["z", "q", "v", "mlp_out", "resid_post"]
    tokens = random_pairs(1, 9, 4) + random_pairs(1, 6, 0, seed=1)
    found = refine(model, encoded(tokens), components=components, direction=direction, budget=1.5)
    for index, pair in enumerate(tokens):
        metric, terms = oracle.logit_diff(pair.answers, pair.wrong_answers), terms_of(plain, pair)
        asked = (plain, pair.clean, pair.corrupted, metric)
        estimates = oracle.atp(*asked, components, direction=direction)
        scores, replaced = found[index]
        for component in components:
            first = len(pair.clean) - scores[component].shape[-1]
            estimate = estimates[component][..., first:]
            effect = oracle.exact(*asked, component, direction=direction)[..., first:]
            measured = ~np.isnan(replaced[component])
            assert 0 < measured.sum() < measured.size
            assert_near(scores[component], np.where(measured, effect, estimate), terms, dtype="float64")
            assert_near(replaced[component][measured], estimate[measured], terms, dtype="float64")
            assert np.abs(effect - estimate).max() > 0.01 * np.abs(effect).max(), "or the two cannot be told apart"


def synthetic(scores: np.ndarray, *, roles: Sequence[tuple[str | None, ...]], first: int) -> Any:
    """Pairs with scores of z (pair, layer, head, suffix position), as the first step gives them."""
    n_tokens = len(roles[0])
    pairs = [
        replace(pair, roles=of_pair)
        for pair, of_pair in zip(encoded(random_pairs(len(scores), n_tokens, first)), roles, strict=True)
    ]
    metrics = np.zeros(len(scores))
    return pairs, BatchScores({Z: scores.astype(np.float32)}, metrics, metrics)


DIMENSIONS = Dimensions(n_layers=4, n_heads=2, n_kv_heads=2, head_dim=4, d_model=8, d_vocab=10, max_tokens=20)


def chosen(scored: Sequence[Any], budget: float, measure_at: Any = "all") -> dict[int, np.ndarray]:
    asked = Method.of(method(id="refined", budget=budget, measure_at=measure_at))
    choice = choose(DIMENSIONS, asked, scored)
    return {pair_id: of_pair.measured[Z] for pair_id, of_pair in choice.of_pair.items()}


def test_a_node_that_one_gradient_does_not_see_is_measured_because_others_do() -> None:
    """At the token of the same role, wherever it stands, and at the same place from the end where there is none."""
    source = np.random.default_rng(0)
    short, long = source.uniform(0, 0.1, (3, 4, 2, 3)), source.uniform(0, 0.1, (3, 4, 2, 4))
    short[1:, 2, 1, 0], long[:, 2, 1, 1] = 5, 5  # of role S2: not in the first pair
    short[:, 3, 0, 2], long[1:, 3, 0, 3] = 7, 7  # the last token: not in the fourth pair
    scored = [
        synthetic(short, roles=[(None, None, "S2", None, None)] * 3, first=2),
        synthetic(long, roles=[(None, "IO", "S2", None, None)] * 3, first=1),
    ]
    scored[1] = ([replace(pair, pair_id=pair.pair_id + 3) for pair in scored[1][0]], scored[1][1])
    # Half of it pays for S2 in 6 pairs, 3 tokens through 2 layers, and for the last token in 6, through one.
    found = chosen(scored, budget=0.35)
    assert all(found[pair_id][2, 1, 0] for pair_id in (0, 1, 2))
    assert all(found[pair_id][2, 1, 1] for pair_id in (3, 4, 5))
    assert all(measured[3, 0, -1] for measured in found.values())


def test_a_pairs_own_largest_are_measured() -> None:
    scores = np.full((8, 4, 2, 3), 0.01)
    for pair in range(8):
        scores[pair, 3, pair % 2, pair % 3] = 1 + pair
    [(pairs, result)] = [synthetic(scores, roles=[(None,) * 5] * 8, first=2)]
    found = chosen([(pairs, result)], budget=0.2)
    assert all(measured[3, pair_id % 2, pair_id % 3] for pair_id, measured in found.items())


@pytest.mark.parametrize("budget", [0.01, 0.1, 0.5, 2.0])
def test_measurements_cost_no_more_than_the_budget(budget: float) -> None:
    scores = np.random.default_rng(1).normal(size=(6, 4, 2, 5))
    scored = [synthetic(scores, roles=[(None,) * 8] * 6, first=3)]
    cost = (4 - np.arange(4))[:, None, None] * (5 - np.arange(5))[None, None]
    total = sum((measured * cost).sum() for measured in chosen(scored, budget).values())
    atp = 6 * 3 * 4 * 5
    most = 6 * cost.sum() * 2
    assert total <= budget * atp
    assert total > min(0.7 * budget * atp, 0.9 * most) - cost.max()


def test_a_score_of_0_is_not_worth_a_measurement() -> None:
    scores = np.zeros((2, 4, 2, 3))
    scores[0, 1, 1, 1] = 1
    found = chosen([synthetic(scores, roles=[(None,) * 5] * 2, first=2)], budget=100)
    assert [measured.sum() for measured in found.values()] == [1, 1], "in the other pair because it is in the chunk"


def test_only_where_it_is_asked_for() -> None:
    scores = np.random.default_rng(1).normal(size=(2, 4, 2, 5))
    scored = [synthetic(scores, roles=[(*[None] * 6, "S2", None)] * 2, first=3)]
    for measure_at, place in (("last", 4), ("S2", 3)):
        for measured in chosen(scored, 100, measure_at).values():
            assert measured[..., place].all()
            assert measured.sum() == measured[..., place].sum()


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_what_is_measured_does_not_depend_on_micro_batches(name: str) -> None:
    """Whether what their passes left is kept, which a small budget does not allow, or computed again."""
    model = tiny_model(name, dtype="float64")
    pairs = encoded(random_pairs(4, 9, 4) + random_pairs(2, 8, 0, seed=3))
    large = refine(model, pairs, components=["z", "k"])
    assert any((~np.isnan(replaced[Z])).any() for _, replaced in large.values())
    for others, batch_tokens in ((pairs[::-1], 33), (pairs, 1)):
        found = refine(model, others, components=["z", "k"], batch_tokens=batch_tokens)
        for pair in pairs:
            terms = terms_of(model.module, pair)
            for ours, theirs in zip(found[pair.pair_id], large[pair.pair_id], strict=True):
                for component in theirs:
                    np.testing.assert_equal(np.isnan(ours[component]), np.isnan(theirs[component]))
                    there = ~np.isnan(theirs[component])
                    if there.any():
                        assert_near(ours[component][there], theirs[component][there], terms, dtype="float64")


def outcomes_when(
    monkeypatch: pytest.MonkeyPatch, fault: Any, pairs: list[EncodedPair], batch_tokens: int = 4096
) -> list[Any]:
    """What becomes of pairs when measuring meets a fault."""
    effects = Patcher.effects

    def faulty(self: Patcher, passes: Any, nodes: Any, *, batch_tokens: int) -> torch.Tensor:
        fault(self, nodes)
        return effects(self, passes, nodes, batch_tokens=batch_tokens)

    monkeypatch.setattr(Patcher, "effects", faulty)
    job: MethodSpec = method(id="refined")
    return [outcome for _, outcome in score_pairs(tiny_model("llama"), pairs, [job], TokenBudget(batch_tokens))]


def test_a_pair_that_cannot_be_measured_costs_no_other_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encoded(random_pairs(4, 9, 4) + random_pairs(1, 12, 5, seed=1))

    def fault(patcher: Patcher, _nodes: Any) -> None:
        if 12 in patcher.n_tokens:
            raise RuntimeError("no measurement")

    found = outcomes_when(monkeypatch, fault, pairs)
    scored = {pair.pair_id for one in found if isinstance(one, ScoredBatch) for pair in one.pairs}
    [failed] = [one for one in found if isinstance(one, FailedPair)]
    assert scored == {0, 1, 2, 3}
    assert (failed.pair.pair_id, failed.reason) == (4, FailureReason.SCORING_ERROR)


def test_memory_that_runs_out_once_costs_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encoded(random_pairs(4, 9, 4))
    attempts: list[int] = []

    def fault(patcher: Patcher, _nodes: Any) -> None:
        attempts.append(len(patcher.n_tokens))
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("once")

    found = outcomes_when(monkeypatch, fault, pairs)
    assert all(isinstance(one, ScoredBatch) for one in found)
    assert sum(len(one.pairs) for one in found) == 4
    assert attempts[0] == 4 > attempts[1], "and what is computed at once is less from then on"
