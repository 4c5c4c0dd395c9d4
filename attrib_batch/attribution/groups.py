"""Methods that are computed in the same forward passes, with the function that does it.

A group holds all that scoring reads of the registry, so that it can travel to a server that has no registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from attrib_batch.attribution.method import Method
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.errors import JobError
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import MethodSpec, share_forward_passes
from attrib_batch.spec.registries.entry_points import load_reference
from attrib_batch.spec.registries.methods import method_entry


@runtime_checkable
class ScoringFunction(Protocol):
    """Scores pairs of one length and one first difference by one method, at the positions from there on."""

    def __call__(
        self, model: LoadedModel, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int
    ) -> BatchScores:
        """Score ``pairs``, whose suffixes fit into ``batch_tokens``; rows beyond those are computed in parts that fit.

        Whatever it raises is recorded for a pair that raises it alone; a `RequestError` ends the scoring.
        """
        ...


@runtime_checkable
class SharedScoringFunction(Protocol):
    """The same by several methods at once; one result each, in their order."""

    def __call__(
        self, model: LoadedModel, pairs: Sequence[EncodedPair], methods: Sequence[Method], *, batch_tokens: int
    ) -> list[BatchScores]:
        """Score ``pairs`` by all ``methods``."""
        ...


@dataclass(frozen=True)
class MethodGroup:
    """Methods that share forward passes; one method where its kind shares none."""

    methods: tuple[Method, ...]
    function: ScoringFunction | SharedScoringFunction
    shared: bool
    """Whether ``function`` takes all methods at once."""
    reads_whole_prompts: bool

    def score(self, model: LoadedModel, pairs: Sequence[EncodedPair], *, batch_tokens: int) -> list[BatchScores]:
        """Score pairs of one shape by every method of the group."""
        if self.shared:
            together = cast("SharedScoringFunction", self.function)
            return together(model, pairs, self.methods, batch_tokens=batch_tokens)
        alone = cast("ScoringFunction", self.function)
        return [alone(model, pairs, method, batch_tokens=batch_tokens) for method in self.methods]


def group_methods(methods: Sequence[MethodSpec]) -> list[MethodGroup]:
    """Group methods by what is computed in the same forward passes, and load their functions.

    Raises:
        JobError: the function of a kind cannot be imported.
    """
    groups = []
    for members in share_forward_passes(methods):
        entry = method_entry(members[0].kind)
        groups.append(
            MethodGroup(
                tuple(map(Method.of, members)),
                scoring_function(entry.kind),
                entry.shares_forward_passes,
                entry.reads_whole_prompts,
            )
        )
    return groups


def scoring_function(kind: str) -> ScoringFunction | SharedScoringFunction:
    """Import the function that computes a kind of method.

    Raises:
        JobError: the kind is not known, or its function cannot be imported.
    """
    entry = method_entry(kind)
    try:
        function: ScoringFunction | SharedScoringFunction = load_reference(entry.function)
    except Exception as error:  # importing it runs its author's code, which may raise anything
        raise JobError(
            f"method {kind!r}: its function {entry.function} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise JobError(f"method {kind!r}: {entry.function} is not a function")
    return function
