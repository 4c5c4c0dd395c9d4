"""How the engine is called: the one place to change when its interface does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.spec import Component, MethodSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair

ATP = MethodSpec.model_validate({"id": "atp"})
METHODS = (ATP, *(MethodSpec.model_validate({"id": kind}) for kind in ("atp_ig", "atp_star")))


def score(
    model: LoadedModel, pairs: Sequence[EncodedPair], batch_tokens: int, method: MethodSpec = ATP
) -> Iterator[ScoredBatch]:
    """Score pairs in micro-batches of at most so many suffix tokens.

    Raises:
        RuntimeError: a pair could not be scored, or micro-batches had to be made smaller: a timing would be of
            something else than it says.
    """
    yield from _score(model, pairs, _Counted(batch_tokens), method)


class _Counted(TokenBudget):
    """Counts the micro-batches: each is asked for once."""

    n_batches = 0

    def batch_tokens(self, batch: Sequence[EncodedPair]) -> int:
        self.n_batches += 1
        return super().batch_tokens(batch)


def _score(
    model: LoadedModel, pairs: Sequence[EncodedPair], budget: _Counted, method: MethodSpec = ATP
) -> Iterator[ScoredBatch]:
    batch_tokens = budget.tokens
    for _, outcome in score_pairs(model, pairs, [method], budget):
        if not isinstance(outcome, ScoredBatch):
            raise RuntimeError(f"a pair was not scored: {outcome.message}")  # noqa: TRY004 - not a wrong type
        yield outcome
    if budget.tokens < batch_tokens:
        raise RuntimeError(f"memory ran out: {batch_tokens} suffix tokens became {budget.tokens}")


def n_micro_batches(model: LoadedModel, pairs: Sequence[EncodedPair], batch_tokens: int) -> int:
    """Score pairs; return in how many micro-batches."""
    budget = _Counted(batch_tokens)
    for _ in _score(model, pairs, budget):
        pass
    return budget.n_batches


def scores_of(
    model: LoadedModel, pairs: Sequence[EncodedPair], batch_tokens: int, method: MethodSpec = ATP
) -> dict[int, np.ndarray]:
    """The ``z`` scores of every pair at all of its positions, (layer, head, position)."""
    found = {}
    for batch in score(model, pairs, batch_tokens, method):
        values = batch.result.scores[Component.Z]
        for index, pair in enumerate(batch.pairs):
            whole = np.zeros((*values.shape[1:3], pair.n_tokens), dtype=np.float32)
            given = values[index][..., values.shape[-1] - (pair.n_tokens - pair.first_difference) :]
            whole[..., pair.first_difference :] = given
            found[pair.pair_id] = whole
    return found
