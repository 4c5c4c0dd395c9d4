"""Score the pairs of a task, and tell an exception that is a pair's own from one that is nobody's.

A pair that raises alone is recorded and costs no other its scores. Where every pair of a task raises the same, a
metric, a library or a device is to blame: nothing is recorded, and the task fails as a whole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from attrib_batch.errors import TaskError
from attrib_batch.pairs.encode import EncodedPair
from attrib_batch.schema import FailureReason

if TYPE_CHECKING:
    from attrib_batch.attribution.engine import FailedPair, Outcome
    from attrib_batch.spec import MethodJob
    from attrib_batch.workers.assignment import Assignment
    from attrib_batch.workers.task import TaskResults

Score = Callable[[Sequence[EncodedPair]], Iterable[tuple["MethodJob", "Outcome"]]]
"""Scores pairs by every method of a task."""

CONTROL_TOKENS = 6
"""How many token ids the control pair is made of: those from 0 on, which every vocabulary has."""

_VARIES = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""What differs between messages of the same exception: sizes, indices, addresses."""
_SIZE_MATTERS = re.compile(r"out of memory|MemoryError|DefaultCPUAllocator|JobTooLongError")
"""Exceptions that long pairs meet and short ones do not: memory ran out, or a server's time."""


def score_task(assignment: Assignment, pairs: Sequence[EncodedPair], results: TaskResults, score: Score) -> None:
    """Score the pairs of a task into its results.

    Args:
        assignment: the task; in a probe every exception is a pair's own.
        pairs: its pairs that can be scored.
        results: takes the outcomes.
        score: scores pairs by the task's methods. Where processes share a model's weights, all of them come to the same
            calls of it.

    Raises:
        TaskError: every pair ended in the same exception, and no pair is to blame for it.
    """
    failed: dict[str, list[FailedPair]] = defaultdict(list)
    for method, outcome in score(pairs):
        results.add(method, outcome)
        if (failure := _exception(outcome)) is not None:
            failed[method.id].append(failure)
    if assignment.probe is not None:
        return
    alike = {
        method_id: failures[0].message
        for method_id, failures in failed.items()
        if len(failures) == len(pairs) and len({_kind(failure.message) for failure in failures}) == 1
    }
    if not alike:
        return
    (start, stop), dataset = assignment.rows, assignment.task[0].cell.dataset
    where = f"rows {start} to {stop - 1} of {dataset}"
    for method_id, message in alike.items():
        if len(pairs) > 1 and not _SIZE_MATTERS.search(message):
            raise TaskError(f"{where}: all {len(pairs)} pairs of {method_id} ended in the same exception: {message}")
    # One pair alone, or pairs that may all be too long: a short pair that is known to be fine tells.
    control = {method.id: failure for method, outcome in score([control_pair()]) if (failure := _exception(outcome))}
    for method_id, message in alike.items():
        if method_id in control and _kind(control[method_id].message) == _kind(message):
            raise TaskError(
                f"{where}: {len(pairs)} pairs of {method_id}, and a made-up one as well, ended in the same exception: "
                f"{message}"
            )


def control_pair() -> EncodedPair:
    """Return a short pair that nobody asked for: what ends it in an exception is no pair's fault."""
    first, clean, corrupted, last, right, wrong = range(CONTROL_TOKENS)
    return EncodedPair(
        pair_id=-1,
        clean=(first, clean, last),
        corrupted=(first, corrupted, last),
        answers=(right,),
        wrong_answers=(wrong,),
        first_difference=1,
        roles=(None, None, None),
        template=None,
        group=None,
    )


def _exception(outcome: Outcome) -> FailedPair | None:
    """The outcome, if it is an exception."""
    from attrib_batch.attribution.engine import FailedPair

    if isinstance(outcome, FailedPair) and outcome.reason == FailureReason.SCORING_ERROR:
        return outcome
    return None


def _kind(message: str) -> str:
    """A message of which only what varies between pairs is left out."""
    return _VARIES.sub("#", message)
