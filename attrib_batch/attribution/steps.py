"""Methods in two steps: all pairs of a task are scored before any is gone on with.

What the second step does depends on the pairs of a task, a chunk of the plan, and not on how these were divided into
micro-batches. What the passes of a micro-batch left is kept for it as far as memory allows, and computed again where it
was not; that changes no number but by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from attrib_batch.attribution.batches import suffix_tokens
from attrib_batch.attribution.faults import is_out_of_memory
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.scores import BatchScores, Scores
from attrib_batch.models.families import Dimensions
from attrib_batch.pairs.encoding.encode import EncodedPair


@runtime_checkable
class State(Protocol):
    """What the passes of a micro-batch left."""

    @property
    def n_bytes(self) -> int:
        """How much memory it takes, about."""
        ...


@dataclass(frozen=True)
class TwoSteps:
    """The functions of a method in two steps; for one micro-batch, all of it, it is a scoring function."""

    first: Callable[[Passes, Sequence[EncodedPair], Method], tuple[Scores, Any]]
    """Scores pairs, and returns what its passes left; None where that is of no use to the second step."""
    choose: Callable[[Dimensions, Method, Sequence[tuple[Sequence[EncodedPair], BatchScores]]], Any]
    """Chooses what the second step does, from the scores of all pairs; what it returns has a hash, its ``digest``."""
    again: Callable[[Passes, Sequence[EncodedPair], Method], Any]
    """Returns what the passes of the first step left, without its scores."""
    second: Callable[..., Scores]
    """Scores pairs, as ``second(passes, pairs, state, choice, batch_tokens=...)``."""

    def __call__(self, passes: Passes, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int) -> Scores:
        """Score pairs as if they were all of a task."""
        from attrib_batch.attribution.groups import by_shape

        scores, state = self.first(passes, pairs, method)
        choice = self.choose(passes.model.dimensions, method, by_shape(pairs, scores))
        if state is None:
            state = self.again(passes, pairs, method)
        return self.second(passes, pairs, state, choice, batch_tokens=batch_tokens)


@runtime_checkable
class Keeps(Protocol):
    """Says how much may be kept."""

    def keeps(self, n_suffix_tokens: int, n_bytes: int) -> bool:
        """Return whether so much may be kept."""
        ...


@dataclass
class Kept:
    """What the passes of micro-batches left, by their pairs, as far as it may be kept."""

    limit: Keeps
    _of: dict[tuple[int, ...], tuple[list[EncodedPair], Passes, Any]] = field(default_factory=dict)
    _tokens: int = 0
    _bytes: int = 0

    def add(self, batch: list[EncodedPair], passes: Passes, state: State | None) -> None:
        """Keep what a micro-batch left, if it left anything and there is room for it."""
        if state is None:
            return
        tokens, n_bytes = self._tokens + suffix_tokens(batch), self._bytes + state.n_bytes
        if self.limit.keeps(tokens, n_bytes):
            self._of[_key(batch)] = batch, passes, state
            self._tokens, self._bytes = tokens, n_bytes

    def batches(self) -> list[list[EncodedPair]]:
        """Return the micro-batches of which something is kept now."""
        return [batch for batch, _, _ in self._of.values()]

    def take(self, batch: Sequence[EncodedPair]) -> tuple[Passes, Any] | None:
        """Return what a micro-batch left, and keep it no longer; None where nothing is there."""
        found = self._of.pop(_key(batch), None)
        return None if found is None else found[1:]

    @contextmanager
    def let_go_when_memory_runs_out(self) -> Iterator[None]:
        """Keep nothing any more once memory runs out."""
        try:
            yield
        except Exception as error:  # memory that runs out has many classes; whatever it is, it is raised again
            if is_out_of_memory(error):
                self._of.clear()
            raise


def _key(batch: Sequence[EncodedPair]) -> tuple[int, ...]:
    return tuple(pair.pair_id for pair in batch)
