"""Score pairs with the package, in the shape the oracle gives: one array [layer, head, position] per pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.groups import by_shape
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import passes_for
from attrib_batch.models.load import LoadedModel, wrap_model
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component, MethodSpec
from attrib_batch.spec.registries.methods import method_entry
from tests.support.device import TEST_DEVICE
from tests.support.near import estimated_terms
from tests.support.tiny_models import EVERY_ARCHITECTURE, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from attrib_batch.attribution.references import Means
    from attrib_batch.attribution.scores import BatchScores
    from tests.support.demo_pairs import TokenPair


def tiny_model(name: str, *, dtype: str = "float32") -> LoadedModel:
    """A tiny model of an architecture, wrapped as a worker would wrap it, on the device of the tests."""
    return wrap_model(in_type(EVERY_ARCHITECTURE[name](), dtype).to(TEST_DEVICE), tiny_tokenizer())


def in_type(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The model in a precision; experts are computed one by one in float64, which grouped products do not take."""
    if dtype == "float64" and getattr(model.config, "num_experts_per_tok", None):
        model.set_experts_implementation("eager")
    return model.to(getattr(torch, dtype))


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


def method(**options: object) -> MethodSpec:
    """A method, attribution patching unless said otherwise."""
    return MethodSpec.model_validate({"id": "atp", **options})


@dataclass(frozen=True)
class PairScores(Mapping[Component, np.ndarray]):
    """The scores of one pair, each (layer, head, position), and both metrics."""

    scores: dict[Component, np.ndarray]
    clean_metric: float
    corrupted_metric: float

    def __getitem__(self, component: Component) -> np.ndarray:
        return self.scores[component]

    def __iter__(self) -> Iterator[Component]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def terms(self) -> float:
        """The size of what was added up, estimated from what came out."""
        metrics = self.clean_metric, self.corrupted_metric
        return estimated_terms(*self.scores.values(), *metrics, metrics[0] - metrics[1])


def score(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    job: MethodSpec,
    *,
    batch_tokens: int = 4096,
    means: Means | None = None,
) -> dict[int, PairScores]:
    """Scores of every pair over all positions, prefix included, by pair id; fails if a pair could not be scored."""
    return score_together(model, pairs, [job], batch_tokens=batch_tokens, means=means)[job.id]


def score_alike(
    function: Any, model: LoadedModel, pairs: Sequence[EncodedPair], job: MethodSpec, *, batch_tokens: int = 4096
) -> BatchScores:
    """Scores of pairs of one shape by one scoring function, called as the engine calls it."""
    entry, passes = method_entry(job.kind), passes_for(model)
    passes.begin(pairs)
    passes.prepare(pairs)
    what: Any = [Method.of(job)] if entry.shares_forward_passes else Method.of(job)
    result = function(passes, pairs, what, batch_tokens=batch_tokens)
    [(given, scores)] = by_shape(pairs, result[0] if entry.shares_forward_passes else result)
    assert given == list(pairs)
    return scores


def score_together(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    jobs: Sequence[MethodSpec],
    *,
    batch_tokens: int = 4096,
    means: Means | None = None,
) -> dict[str, dict[int, PairScores]]:
    """As ``score``, by method; methods that can share forward passes do."""
    found: dict[str, dict[int, PairScores]] = {job.id: {} for job in jobs}
    for job, outcome in score_pairs(model, pairs, jobs, TokenBudget(batch_tokens), means=means):
        assert isinstance(outcome, ScoredBatch), outcome
        result = outcome.result
        for index, pair in enumerate(outcome.pairs):
            scores = {
                component: np.pad(values[index], ((0, 0), (0, 0), (pair.n_tokens - values.shape[-1], 0)))
                for component, values in result.scores.items()
            }
            metrics = (float(metric[index]) for metric in (result.clean_metric, result.corrupted_metric))
            found[job.id][pair.pair_id] = PairScores(scores, *metrics)
    assert all(set(of_job) == {pair.pair_id for pair in pairs} for of_job in found.values())
    return found
