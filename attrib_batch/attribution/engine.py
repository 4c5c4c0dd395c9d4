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
from attrib_batch.attribution.groups import MethodGroup, ShapeScores, group_methods
from attrib_batch.attribution.groups import by_shape as shapes_of
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import metric_named
from attrib_batch.attribution.passes import Passes, passes_for
from attrib_batch.attribution.references import Means
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.attribution.steps import Kept, TwoSteps
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

    def keeps(self, n_suffix_tokens: int, n_bytes: int) -> bool:
        """Return whether what passes of so many suffix positions left may be kept, so many bytes, beside a batch."""
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

    def keeps(self, n_suffix_tokens: int, _n_bytes: int) -> bool:
        """Return whether they are no more than those of a micro-batch."""
        return n_suffix_tokens <= self.tokens

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
        work = _Work(passes, group, budget, limit, agree)
        if isinstance(group.function, TwoSteps):
            yield from _in_two_steps(work, group.function, pairs)
        else:
            passes.begin(pairs)
            yield from _by_micro_batches(work, pairs, _at_once(work))


Attempt = Callable[[list[EncodedPair]], list[list[ShapeScores]]]
"""Computes a micro-batch; for each method of the group what it gives for pairs of one shape."""


@dataclass(frozen=True)
class _Work:
    """What micro-batches of a group of methods are computed with."""

    passes: Passes
    group: MethodGroup
    budget: Budget
    limit: Limit
    agree: Agree


def _at_once(work: _Work) -> Attempt:
    # No shapes here: the annotations of an inner function are evaluated on a server too, which has no jaxtyping.
    def attempt(batch: list[EncodedPair]) -> list[list[ShapeScores]]:
        work.passes.prepare(batch)
        return work.group.score(work.passes, batch, batch_tokens=work.limit.batch_tokens(batch))

    return attempt


def _by_micro_batches(work: _Work, pairs: Sequence[EncodedPair], attempt: Attempt) -> Iterator[tuple[Method, Outcome]]:
    together = work.passes.together(pairs) if work.group.mixes_shapes else by_shape(pairs)
    for some in together:
        rest = some
        while rest:
            # One after the other: the budget may have shrunk.
            batch = next(micro_batches(rest, work.limit.fits, padded=work.passes.padded))
            rest = rest[len(batch) :]
            yield from _score_or_split(work, batch, attempt, attempts=1)


def _in_two_steps(work: _Work, steps: TwoSteps, pairs: Sequence[EncodedPair]) -> Iterator[tuple[Method, Outcome]]:
    """Score all pairs by the first step of a method, and then, by what all of these scores say, by its second."""
    [method] = work.group.methods
    kept = Kept(work.limit)

    def first(batch: list[EncodedPair]) -> list[list[ShapeScores]]:
        with kept.let_go_when_memory_runs_out():
            passes = passes_for(work.passes.model)
            passes.begin(batch)
            passes.prepare(batch)
            scores, state = steps.first(passes, batch, method)
            kept.add(batch, passes, state)
            return [shapes_of(batch, scores)]

    estimated: list[ScoredBatch] = []
    for _, outcome in _by_micro_batches(work, pairs, first):
        if isinstance(outcome, ScoredBatch):
            estimated.append(outcome)
        else:
            yield method, outcome
    choice = steps.choose(work.passes.model.dimensions, method, [(one.pairs, one.result) for one in estimated])
    # Where processes share a model's weights they must measure the same.
    work.agree(f"chose {choice.digest}")

    def second(batch: list[EncodedPair]) -> list[list[ShapeScores]]:
        with kept.let_go_when_memory_runs_out():
            passes, state = kept.take(batch) or (passes_for(work.passes.model), None)
            if state is None:
                passes.begin(batch)
                passes.prepare(batch)
                state = steps.again(passes, batch, method)
            tokens = work.limit.batch_tokens(batch)
            return [shapes_of(batch, steps.second(passes, batch, state, choice, batch_tokens=tokens))]

    rest = {pair.pair_id: pair for one in estimated for pair in one.pairs}
    for batch in kept.batches():
        if all(pair.pair_id in rest for pair in batch):
            for pair in batch:
                del rest[pair.pair_id]
            yield from _score_or_split(work, batch, second, attempts=1)
    if rest:
        yield from _by_micro_batches(work, list(rest.values()), second)


def _score_or_split(
    work: _Work, batch: list[EncodedPair], attempt: Attempt, *, attempts: int
) -> Iterator[tuple[Method, Outcome]]:
    agree = work.agree
    try:
        results = attempt(batch)
    except RequestError:
        raise  # whatever the pairs, it would be the same
    except Exception as error:  # noqa: BLE001 - whatever one pair raises must cost only that pair; it is recorded
        raise_if_no_pair_is_to_blame(error)
        message = f"{type(error).__name__}: {error}"
        out_of_memory = is_out_of_memory(error)
    else:
        agree(SUCCESS)
        for method, shapes in zip(work.group.methods, results, strict=True):
            for alike, result in shapes:
                for outcome in _finite_and_not(work.passes.model, method, alike, result, attempts):
                    yield method, outcome
        return
    # Outside the handler: the exception, and with it the tensors of the failed attempt, are gone by now.
    agree(OUT_OF_MEMORY if out_of_memory else message)
    if out_of_memory:
        _release_cached_memory()
        if work.budget.ran_out_at(batch) and len(batch) == 1:
            # A method may compute further rows for one pair, and computes them in smaller parts now.
            yield from _score_or_split(work, batch, attempt, attempts=attempts + 1)
            return
    if len(batch) == 1:
        for method in work.group.methods:
            yield method, FailedPair(batch[0], FailureReason.SCORING_ERROR, message, attempts)
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from _score_or_split(work, half, attempt, attempts=attempts + 1)


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
