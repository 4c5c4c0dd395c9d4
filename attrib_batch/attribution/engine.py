"""Score any pairs: micro-batches of one shape, and isolation of pairs that cannot be scored."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from attrib_batch.attribution.atp import attribution_patching
from attrib_batch.attribution.atp_ig import integrated_gradients
from attrib_batch.attribution.atp_star import attribution_patching_star
from attrib_batch.attribution.batches import micro_batches, suffix_tokens
from attrib_batch.attribution.exact import activation_patching
from attrib_batch.attribution.metrics import metric_named
from attrib_batch.schema import FailureReason
from attrib_batch.spec import run_together

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.attribution.scores import BatchScores
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encode import EncodedPair
    from attrib_batch.spec import MethodJob, MethodKind


class Method(Protocol):
    """Scores pairs of one length and one first difference, at the positions from there on."""

    def __call__(
        self, model: LoadedModel, pairs: Sequence[EncodedPair], method: MethodJob, *, batch_tokens: int
    ) -> BatchScores:
        """Score ``pairs``, whose suffixes fit into ``batch_tokens``; rows beyond those are run in parts that fit."""
        ...


METHODS: dict[MethodKind, Method] = {
    "atp_ig": integrated_gradients,
    "atp_star": attribution_patching_star,
    "exact": activation_patching,
}


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


@dataclass
class TokenBudget:
    """How many suffix positions a micro-batch may hold; it shrinks when memory runs out, and stays so."""

    tokens: int

    def ran_out_at(self, batch: Sequence[EncodedPair]) -> bool:
        """A micro-batch of this size did not fit: from now on half of it at most. Returns whether that is less."""
        before = self.tokens
        self.tokens = max(1, min(before, suffix_tokens(batch) // 2))
        return self.tokens < before


Outcome = ScoredBatch | FailedPair


Agree = Callable[[str], None]
"""Told how an attempt at a micro-batch ended; raises where other processes' attempts at it ended otherwise."""

SUCCESS, OUT_OF_MEMORY = "ok", "out of memory"
"""How an attempt may end; otherwise it ends with the name of an exception class, a colon and its message."""


def _alone(verdict: str) -> None:
    """Agree with nobody: the model is whole in this process."""


def score_pairs(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    methods: Sequence[MethodJob],
    budget: TokenBudget,
    *,
    agree: Agree = _alone,
) -> Iterator[tuple[MethodJob, Outcome]]:
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

    Raises:
        JobError: a metric is not known in this process.
    """
    for method in methods:
        metric_named(method.metric)  # a metric that is missing is no failure of the pairs
    for together in run_together(methods):
        for batch in micro_batches(pairs, budget.tokens):
            for part in micro_batches(batch, budget.tokens):
                yield from _score_or_split(model, part, together, budget, agree, attempts=1)


def _score_or_split(
    model: LoadedModel,
    batch: list[EncodedPair],
    methods: Sequence[MethodJob],
    budget: TokenBudget,
    agree: Agree,
    *,
    attempts: int,
) -> Iterator[tuple[MethodJob, Outcome]]:
    try:
        results = _score(model, batch, methods, budget)
    except Exception as error:  # noqa: BLE001 - whatever one pair raises must cost only that pair; it is recorded
        message = f"{type(error).__name__}: {error}"
        out_of_memory = is_out_of_memory(error)
    else:
        agree(SUCCESS)
        for method, result in zip(methods, results, strict=True):
            for outcome in _finite_and_not(batch, result, attempts):
                yield method, outcome
        return
    # Outside the handler: the exception, and with it the tensors of the failed attempt, are gone by now.
    agree(OUT_OF_MEMORY if out_of_memory else message)
    if out_of_memory:
        _release_cached_memory()
        if budget.ran_out_at(batch) and len(batch) == 1:
            # A method may run further rows for one pair, and runs them in smaller parts now.
            yield from _score_or_split(model, batch, methods, budget, agree, attempts=attempts + 1)
            return
    if len(batch) == 1:
        for method in methods:
            yield method, FailedPair(batch[0], FailureReason.SCORING_ERROR, message, attempts)
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from _score_or_split(model, half, methods, budget, agree, attempts=attempts + 1)


def _score(
    model: LoadedModel, batch: list[EncodedPair], methods: Sequence[MethodJob], budget: TokenBudget
) -> list[BatchScores]:
    if methods[0].kind == "atp":
        return attribution_patching(model, batch, methods)
    return [METHODS[method.kind](model, batch, method, batch_tokens=budget.tokens) for method in methods]


def _finite_and_not(batch: list[EncodedPair], result: BatchScores, attempts: int) -> Iterator[Outcome]:
    finite = result.finite()
    for pair, ok in zip(batch, finite, strict=True):
        if not ok:
            message = "a metric or score of this pair is not finite; the model overflows on it (try dtype float32)"
            yield FailedPair(pair, FailureReason.NON_FINITE, message, attempts)
    if finite.any():
        yield ScoredBatch(
            [pair for pair, ok in zip(batch, finite, strict=True) if ok],
            result if finite.all() else result.select(finite),
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator has no exception class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _release_cached_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
