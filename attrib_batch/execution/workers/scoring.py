"""Score the pairs of a task, and distinguish exceptions that a pair causes from those that no pair causes.

A pair that raises alone is recorded and costs no other its scores. Where every pair of a task raises the same, or what
was scored before raises it now, a metric, a library or a device is to blame: the task fails as a whole, and nothing is
recorded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from attrib_batch.attribution.faults import says_out_of_memory
from attrib_batch.errors import TaskError
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Reading
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from attrib_batch.attribution.engine import FailedPair, Outcome
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.workers.task import TaskResults
    from attrib_batch.spec import MethodSpec

Score = Callable[[Sequence[EncodedPair]], Iterable[tuple["MethodSpec", "Outcome"]]]
"""Scores pairs by every method of a task."""

CONTROL_TOKENS = 6
"""How many token ids the control pair is made of: those from 0 on, which every vocabulary has."""

_VARIES = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""What differs between messages of the same exception: sizes, indices, addresses."""


def score_task(assignment: Assignment, pairs: Sequence[EncodedPair], results: TaskResults, score: Score) -> None:
    """Score the pairs of a task into its results.

    Where pairs end in exceptions, a pair is scored once more that was scored before; where there is none, one that
    nobody asked for. If it ends in the same exception now, what was well before is broken, and no pair is to blame.

    Args:
        assignment: the task; in a probe every exception is a pair's own.
        pairs: its pairs that can be scored.
        results: takes the outcomes.
        score: scores pairs by the task's methods. Where processes share a model's weights, all of them come to the same
            calls of it.

    Raises:
        TaskError: no pair is to blame for the exception that all of them, or some and then one that was well before,
            ended in.
    """
    failed: dict[str, list[FailedPair]] = defaultdict(list)
    scored: EncodedPair | None = None
    for method, outcome in score(pairs):
        results.add(method, outcome)
        if (failure := _exception(outcome)) is not None:
            failed[method.id].append(failure)
        else:
            scored = _last_scored(outcome) or scored
    if assignment.probe is not None or not failed:
        return
    where = f"rows {assignment.rows[0]} to {assignment.rows[1] - 1} of {assignment.task[0].cell.dataset}"
    for method_id, failures in failed.items():
        message = failures[0].message
        alike = len(failures) == len(pairs) and len({_kind(failure.message) for failure in failures}) == 1
        if alike and len(pairs) > 1 and not _size_matters(message):
            raise TaskError(f"{where}: all {len(pairs)} pairs of {method_id} ended in the same exception: {message}")
    made_up = control_pair(whole_answers=any(Reading.of(method).whole_answers for method in results.methods))
    control, origin = (scored, "that had been scored") if scored else (made_up, "made up for comparison")
    for method, outcome in score([control]):
        if (failure := _exception(outcome)) is None:
            continue
        if _kind(failure.message) in {_kind(earlier.message) for earlier in failed[method.id]}:
            count = f"{len(failed[method.id])} of {len(pairs)} pairs of {method.id}"
            raise TaskError(f"{where}: {count}, and then one {origin}, ended in the same exception: {failure.message}")


def control_pair(*, whole_answers: bool = False) -> EncodedPair:
    """Return a short pair that nobody asked for: what ends it in an exception is no pair's fault."""
    first, clean, corrupted, last, right, wrong = range(CONTROL_TOKENS)
    return EncodedPair(
        pair_id=-1,
        clean=(first, clean, last),
        corrupted=(first, corrupted, last),
        answers=() if whole_answers else (right,),
        wrong_answers=() if whole_answers else (wrong,),
        right_sequences=((right, last),) if whole_answers else (),
        wrong_sequences=((wrong, last),) if whole_answers else (),
        first_difference=1,
        roles=(None, None, None),
        template=None,
        group=None,
    )


def _exception(outcome: Outcome) -> FailedPair | None:
    """Return the outcome if it is an exception, otherwise None."""
    from attrib_batch.attribution.engine import FailedPair

    if isinstance(outcome, FailedPair) and outcome.reason == FailureReason.SCORING_ERROR:
        return outcome
    return None


def _size_matters(message: str) -> bool:
    """Return whether long pairs may meet an exception and short ones not: memory ran out, or a server's time."""
    return says_out_of_memory(message) or "JobTooLongError" in message


def _last_scored(outcome: Outcome) -> EncodedPair | None:
    """Return the last pair that was scored in an outcome, if any was."""
    from attrib_batch.attribution.engine import ScoredBatch

    return outcome.pairs[-1] if isinstance(outcome, ScoredBatch) else None


def _kind(message: str) -> str:
    """Return a message without what varies between pairs: numbers and addresses."""
    return _VARIES.sub("#", message)
