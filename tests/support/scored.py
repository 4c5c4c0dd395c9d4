"""Score pairs with the package, in the shape the oracle gives: one array [layer, head, position] per pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.models.load import LoadedModel, wrap_model
from attrib_batch.pairs.encode import EncodedPair
from attrib_batch.schema import Component
from attrib_batch.spec import MethodJob
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.demo_pairs import TokenPair


def tiny_model(name: str) -> LoadedModel:
    """A tiny model of an architecture, wrapped as a worker would wrap it."""
    return wrap_model(ARCHITECTURES[name](), tiny_tokenizer())


def encoded(pairs: Sequence[TokenPair]) -> list[EncodedPair]:
    """Token pairs as the engine takes them, with ids in order."""
    return [
        EncodedPair(
            pair_id=index,
            clean=tuple(pair.clean),
            corrupted=tuple(pair.corrupted),
            answers=tuple(pair.answers),
            wrong_answers=tuple(pair.wrong_answers),
            first_difference=next(
                (i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b),
                len(pair.clean) - 1,
            ),
            roles=(None,) * len(pair.clean),
            template=None,
            group=None,
        )
        for index, pair in enumerate(pairs)
    ]


def method(**options: object) -> MethodJob:
    """A method, attribution patching unless said otherwise."""
    return MethodJob.model_validate({"id": "atp", **options})


def score(
    model: LoadedModel, pairs: Sequence[EncodedPair], job: MethodJob, *, batch_tokens: int = 4096
) -> dict[int, dict[Component, np.ndarray]]:
    """Scores of every pair over all positions, prefix included, by pair id; fails if a pair could not be scored."""
    found: dict[int, dict[Component, np.ndarray]] = {}
    for _, outcome in score_pairs(model, pairs, [job], TokenBudget(batch_tokens)):
        assert isinstance(outcome, ScoredBatch), outcome
        for index, pair in enumerate(outcome.pairs):
            found[pair.pair_id] = {
                component: np.pad(values[index], ((0, 0), (0, 0), (pair.n_tokens - values.shape[-1], 0)))
                for component, values in outcome.result.scores.items()
            }
    assert set(found) == {pair.pair_id for pair in pairs}
    return found


def assert_same_scores(ours: np.ndarray, theirs: np.ndarray, *, tolerance: float = 1e-5) -> None:
    """Equal within ``tolerance`` of the largest score."""
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max()
    assert largest > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)
