"""Score any pairs: micro-batches, and isolation of pairs that cannot be scored."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from attrib_batch.attribution.batches import Size, by_shape, micro_batches, suffix_tokens
from attrib_batch.attribution.faults import is_out_of_memory, raise_if_no_pair_is_to_blame
from attrib_batch.attribution.groups import MethodGroup, group_methods
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import metric_named
from attrib_batch.attribution.passes import Passes, passes_for
from attrib_batch.attribution.references import Means
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.errors import RequestError
from attrib_batch.models.checks.capabilities import check_layers
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import MethodSpec
from attrib_batch.tables import FailureReason


@dataclass(frozen=True)
class ScoredBatch:
    """Pairs and their scores, in the same order."""

    pairs: list[EncodedPair]
    result: BatchScores


@dataclass(frozen=True)
class FailedPair:
    """A pair that could not be scored."""

    pair: EncodedPair
    reason: FailureReason
    message: str
    attempts: int


@runtime_checkable
class Limit(Protocol):
    """How large the micro-batches of a group may be."""

    def fits(self, size: Size) -> bool:
        """Return whether a micro-batch is small enough."""
        ...

    def batch_tokens(self, batch: Sequence[EncodedPair]) -> int:
        """Return how many positions a method may compute at once for a micro-batch."""
        ...


@runtime_checkable
class Budget(Protocol):
    """Says how large micro-batches may be; when memory runs out, they are made smaller, and stay so."""

    def limit(self, passes: Passes, group: MethodGroup) -> Limit:
        """Return the limit for a group of methods."""
        ...

    def ran_out_at(self, batch: Sequence[EncodedPair]) -> bool:
        """Allow at most half of a micro-batch that did not fit from now on; return whether that is less than before."""
        ...

    def halved(self, times: int) -> Budget:
        """Return the budget of smaller micro-batches; itself for none."""
        ...


@dataclass
class TokenBudget:
    """How many suffix positions a micro-batch may hold, whatever the method."""

    tokens: int

    def limit(self, _passes: Passes, _group: MethodGroup) -> Limit:
        """Return itself."""
        return self

    def fits(self, size: Size) -> bool:
        """Return whether a micro-batch has so few suffix positions."""
        return size.suffix_tokens <= self.tokens

    def batch_tokens(self, _batch: Sequence[EncodedPair]) -> int:
        """Return the number."""
        return self.tokens

    def ran_out_at(self, batch: Sequence[EncodedPair]) -> bool:
        """Allow half of a micro-batch that did not fit."""
        before = self.tokens
        self.tokens = max(1, min(before, suffix_tokens(batch) // 2))
        return self.tokens < before

    def halved(self, times: int) -> TokenBudget:
        """Return a budget of fewer positions."""
        return TokenBudget(max(1, self.tokens >> times)) if times else self


Outcome = ScoredBatch | FailedPair


Agree = Callable[[str], None]
"""Told how an attempt at a micro-batch ended; raises where other processes' attempts at it ended otherwise."""

SUCCESS, OUT_OF_MEMORY = "ok", "out of memory"
"""How an attempt may end; otherwise it ends with the name of an exception class, a colon and its message."""


def _alone(verdict: str) -> None:
    """Do nothing: one process holds the whole model."""


def score_pairs(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    methods: Sequence[MethodSpec],
    budget: Budget,
    *,
    agree: Agree = _alone,
    means: Means | None = None,
) -> Iterator[tuple[MethodSpec, Outcome]]:
    """Score pairs of any shapes; for each method every pair ends in exactly one scored batch or one failure.

    A micro-batch that raises is split until the pairs that raise on their own are found, so one bad pair costs no other
    its scores. One that runs out of memory is split as well, and later ones are made smaller; the scores are the same.

    Args:
        model: the model. Where processes share its weights, all of them must score the same pairs in the same order.
        pairs: pairs of any shapes.
        methods: what is asked of every pair.
        budget: how large a micro-batch may be.
        agree: called once after every attempt at a micro-batch, before its outcomes are given; what it raises ends the
            scoring. Processes that share a model's weights split a micro-batch alike or not at all.
        means: mean activations of the dataset, for methods whose reference they are.

    Raises:
        RequestError: a metric is not known in this process, or cannot be what it is used as; the model does not have
            what a method asks of it. No pair is to blame for that.
        DeviceLostError: the device is lost to this process.
    """
    for method in methods:
        metric_named(method.metric)
        check_layers(method, model.dimensions.n_layers, where=f"method {method.id!r}")
    spec_of = {method.id: method for method in methods}
    for scored_by, outcome in score_groups(model, pairs, group_methods(methods, means), budget, agree=agree):
        yield spec_of[scored_by.id], outcome


def score_groups(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    groups: Sequence[MethodGroup],
    budget: Budget,
    *,
    agree: Agree = _alone,
) -> Iterator[tuple[Method, Outcome]]:
    """Score pairs as `score_pairs` does, by methods that were checked and grouped before: no registry is read here."""
    passes = passes_for(model)
    for group in groups:
        limit = budget.limit(passes, group)
        passes.begin(pairs)
        together = passes.together(pairs) if group.mixes_shapes else by_shape(pairs)
        for some in together:
            rest = some
            while rest:
                # One after the other: the budget may have shrunk.
                batch = next(micro_batches(rest, limit.fits, padded=passes.padded))
                rest = rest[len(batch) :]
                yield from _score_or_split(passes, batch, group, (budget, limit), agree, attempts=1)


def _score_or_split(
    passes: Passes,
    batch: list[EncodedPair],
    group: MethodGroup,
    allowed: tuple[Budget, Limit],
    agree: Agree,
    *,
    attempts: int,
) -> Iterator[tuple[Method, Outcome]]:
    budget, limit = allowed
    try:
        passes.prepare(batch)
        results = group.score(passes, batch, batch_tokens=limit.batch_tokens(batch))
    except RequestError:
        raise  # whatever the pairs, it would be the same
    except Exception as error:  # noqa: BLE001 - whatever one pair raises must cost only that pair; it is recorded
        raise_if_no_pair_is_to_blame(error)
        message = f"{type(error).__name__}: {error}"
        out_of_memory = is_out_of_memory(error)
    else:
        agree(SUCCESS)
        for method, shapes in zip(group.methods, results, strict=True):
            for alike, result in shapes:
                for outcome in _finite_and_not(passes.model, method, alike, result, attempts):
                    yield method, outcome
        return
    # Outside the handler: the exception, and with it the tensors of the failed attempt, are gone by now.
    agree(OUT_OF_MEMORY if out_of_memory else message)
    if out_of_memory:
        _release_cached_memory()
        if budget.ran_out_at(batch) and len(batch) == 1:
            # A method may compute further rows for one pair, and computes them in smaller parts now.
            yield from _score_or_split(passes, batch, group, allowed, agree, attempts=attempts + 1)
            return
    if len(batch) == 1:
        for method in group.methods:
            yield method, FailedPair(batch[0], FailureReason.SCORING_ERROR, message, attempts)
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from _score_or_split(passes, half, group, allowed, agree, attempts=attempts + 1)


def _finite_and_not(
    model: LoadedModel, method: Method, batch: list[EncodedPair], result: BatchScores, attempts: int
) -> Iterator[Outcome]:
    finite, metrics_finite = result.finite(), result.metrics_finite()
    for index in np.flatnonzero(~finite):
        message = _not_finite(model, method, metric=not metrics_finite[index])
        yield FailedPair(batch[index], FailureReason.NON_FINITE, message, attempts)
    if finite.any():
        yield ScoredBatch(
            [pair for pair, ok in zip(batch, finite, strict=True) if ok],
            result if finite.all() else result.select(finite),
        )


def _not_finite(model: LoadedModel, method: Method, *, metric: bool) -> str:
    """Say what of a pair is not finite, and what may help."""
    what = f"the metric {method.metric}" if metric else f"a score of {method.id}"
    dtype = str(model.module.dtype).removeprefix("torch.")
    if dtype in {"float32", "float64"}:
        return f"{what} is not finite for this pair, in {dtype}"
    return f"{what} is not finite for this pair; the model may overflow in {dtype}: try dtype float32"


def _release_cached_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
