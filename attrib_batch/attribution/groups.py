"""Methods that are computed in the same forward passes, with the function that does it.

A group holds all that scoring reads of the registry, so that it can travel to a server that has no registry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from attrib_batch.attribution.continuations import over_continuations, with_continuations
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.references import Means
from attrib_batch.attribution.scores import BatchScores, Result, Scores
from attrib_batch.errors import JobError
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import MethodSpec, share_forward_passes
from attrib_batch.spec.registries.entry_points import load_reference
from attrib_batch.spec.registries.methods import method_entry
from attrib_batch.spec.registries.metrics import metric_entry


@runtime_checkable
class ScoringFunction(Protocol):
    """Scores pairs by one method, at the positions from their first difference on.

    Pairs are of any shapes where the method's entry says that it mixes them; otherwise all have one length and one
    first difference.
    """

    def __call__(self, passes: Passes, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int) -> Result:
        """Score ``pairs``, whose suffixes fit into ``batch_tokens``; rows beyond those are computed in parts that fit.

        Whatever it raises is recorded for a pair that raises it alone; a `RequestError` ends the scoring.
        """
        ...


@runtime_checkable
class SharedScoringFunction(Protocol):
    """The same by several methods at once; one result each, in their order."""

    def __call__(
        self, passes: Passes, pairs: Sequence[EncodedPair], methods: Sequence[Method], *, batch_tokens: int
    ) -> Sequence[Result]:
        """Score ``pairs`` by all ``methods``."""
        ...


@dataclass(frozen=True)
class MethodGroup:
    """Methods that share forward passes; one method where its kind shares none."""

    methods: tuple[Method, ...]
    function: ScoringFunction | SharedScoringFunction
    shared: bool
    """Whether ``function`` takes all methods at once."""
    mixes_shapes: bool
    """Whether ``function`` takes pairs of any shapes at once."""
    differentiates: bool
    """Whether it computes gradients."""
    whole_answers: bool = False
    """Whether the metrics read whole answers, each behind its prompt."""
    measured_with: Mapping[str, Any] = field(default_factory=dict)
    """Values of parameters with which the memory it takes is measured."""

    def score(self, passes: Passes, pairs: Sequence[EncodedPair], *, batch_tokens: int) -> list[list[ShapeScores]]:
        """Score pairs by every method of the group; of one shape, unless it mixes shapes."""
        given = with_continuations(pairs) if self.whole_answers else pairs
        results: Sequence[Result]
        if self.shared:
            together = cast("SharedScoringFunction", self.function)
            results = together(passes, given, self.methods, batch_tokens=batch_tokens)
        else:
            alone = cast("ScoringFunction", self.function)
            results = [alone(passes, given, method, batch_tokens=batch_tokens) for method in self.methods]
        if self.whole_answers:
            results = [over_continuations(pairs, result) for result in results]
        return [by_shape(pairs, result) for result in results]


ShapeScores = tuple[list[EncodedPair], BatchScores]
"""Pairs of one shape, and their scores."""


def by_shape(pairs: Sequence[EncodedPair], result: Result) -> list[ShapeScores]:
    """Divide what a method returned into pairs of one length and one first difference."""
    if isinstance(result, BatchScores):
        return [(list(pairs), result)]
    found: list[ShapeScores] = []
    start = 0
    for part in [result] if isinstance(result, Scores) else result:
        shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in range(len(part.count)):
            pair = pairs[start + index]
            shapes[pair.n_tokens, pair.first_difference].append(index)
        found += [
            ([pairs[start + index] for index in indices], part.of_pairs(np.array(indices)))
            for indices in shapes.values()
        ]
        start += len(part.count)
    return found


def group_methods(methods: Sequence[MethodSpec], means: Means | None = None) -> list[MethodGroup]:
    """Group methods by what is computed in the same forward passes, and load their functions.

    Args:
        methods: the methods.
        means: mean activations of the dataset, for those whose reference they are.

    Raises:
        JobError: the function of a kind cannot be imported.
    """
    groups = []
    for members in share_forward_passes(methods):
        entry = method_entry(members[0].kind)
        groups.append(
            MethodGroup(
                tuple(Method.of(member, means) for member in members),
                scoring_function(entry.kind),
                entry.shares_forward_passes,
                entry.mixes_shapes,
                entry.differentiates,
                metric_entry(members[0].metric).whole_answers and not entry.collects,
                dict(entry.measured_with),
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
