"""What processes that share a model's weights tell each other after every attempt at a micro-batch."""

from __future__ import annotations

import pytest
import torch

from attrib_batch.attribution.engine import FailedPair, ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.groups import MethodGroup
from attrib_batch.errors import ShardsDisagreeError
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from tests.support.demo_pairs import random_pairs
from tests.support.scored import encoded, method, tiny_model


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return tiny_model("llama")


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception, *, above: int) -> list[int]:
    """Micro-batches of more than ``above`` pairs raise; returns the sizes of those that are tried."""
    sizes: list[int] = []

    def score(group: MethodGroup, model: LoadedModel, batch: list[EncodedPair], *, batch_tokens: int) -> object:
        sizes.append(len(batch))
        if len(batch) > above:
            raise error
        return original(group, model, batch, batch_tokens=batch_tokens)

    original = MethodGroup.score
    monkeypatch.setattr(MethodGroup, "score", score)
    return sizes


def test_every_attempt_is_told_once(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encoded(random_pairs(4, 8, 4))
    told: list[str] = []
    sizes = fail_with(monkeypatch, ValueError("too many"), above=2)
    outcomes = [found for _, found in score_pairs(llama, pairs, [method()], TokenBudget(4096), agree=told.append)]
    assert sizes == [4, 2, 2]
    assert told == ["ValueError: too many", "ok", "ok"]
    assert all(isinstance(found, ScoredBatch) for found in outcomes)


def test_memory_that_ran_out_is_told_without_its_message(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much was asked for and was left differs from one GPU to another."""
    told: list[str] = []
    fail_with(monkeypatch, torch.OutOfMemoryError("tried to allocate"), above=1)
    list(score_pairs(llama, encoded(random_pairs(2, 8, 4)), [method()], TokenBudget(4096), agree=told.append))
    assert told == ["out of memory", "ok", "ok"]


@pytest.mark.parametrize("above", [0, 4])
def test_disagreement_ends_the_scoring_before_any_outcome(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, above: int
) -> None:
    def refuse(verdict: str) -> None:
        raise ShardsDisagreeError(verdict)

    sizes = fail_with(monkeypatch, ValueError("no"), above=above)
    outcomes = score_pairs(llama, encoded(random_pairs(4, 8, 4)), [method()], TokenBudget(4096), agree=refuse)
    with pytest.raises(ShardsDisagreeError, match=r"^ok$" if above else r"^ValueError: no$"):
        next(outcomes)
    assert sizes == [4]


def test_nobody_is_told_unless_asked(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ValueError("no"), above=0)
    [(_, failed)] = score_pairs(llama, encoded(random_pairs(1, 8, 4)), [method()], TokenBudget(4096))
    assert isinstance(failed, FailedPair)
