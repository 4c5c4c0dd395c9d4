"""Whole answers: each is a continuation of its own, passed through the model behind its prompt.

The log-probability of an answer t_1 ... t_k after a prompt is teacher-forced: the sum over i of log p(t_i | prompt,
t_1 ... t_(i-1)), from one forward pass of the prompt with the answer but its last token. The metric of a pair is the
mean over its right answers minus the mean over its wrong ones, a sum of such terms with weights. So are its scores by
every method for which the scores by a sum of metrics are the sum of those by each: a pair is scored as one pair for
each answer, and these are added up. Only positions of the prompt are scored; behind them both prompts have the same
tokens, and what their activations differ by is an effect of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from attrib_batch.attribution.scores import Result, Scores
from attrib_batch.pairs.encoding.encode import EncodedPair


def with_continuations(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """Return for every pair one with each of its whole answers behind both prompts: right ones first, pair after pair.

    Raises:
        ValueError: a pair was encoded without whole answers.
    """
    if bare := [pair.pair_id for pair in pairs if not (pair.right_sequences and pair.wrong_sequences)]:
        raise ValueError(f"pair {bare[0]} was encoded without whole answers")
    return [
        replace(pair, answers=answer, continuation=answer[:-1], right_sequences=(), wrong_sequences=())
        for pair in pairs
        for answer in (*pair.right_sequences, *pair.wrong_sequences)
    ]


def over_continuations(pairs: Sequence[EncodedPair], result: Result) -> Scores:
    """Add up what a method found for the pairs of `with_continuations`, in double precision.

    Raises:
        TypeError: the method returned no scores of all pairs at once.
    """
    if not isinstance(result, Scores):
        raise TypeError(f"scores of whole answers are added up from {Scores.__name__}, not {type(result).__name__}")
    n_answers = np.array([pair.n_continuations for pair in pairs])
    first = np.cumsum(n_answers) - n_answers
    count = result.count[first]
    of_pair = np.repeat(np.arange(len(pairs)), count)
    place = np.arange(len(of_pair)) - (np.cumsum(count) - count)[of_pair]
    start = np.cumsum(result.count) - result.count
    weights = np.concatenate([_weights(pair) for pair in pairs])
    sums = {
        component: np.zeros((values.shape[0], len(of_pair), values.shape[2]))
        for component, values in result.scores.items()
    }
    metrics = np.zeros((2, len(pairs)))
    for number in range(int(n_answers.max())):
        mine = np.flatnonzero(number < n_answers)
        metrics[:, mine] += weights[first[mine] + number] * np.stack(
            [result.clean_metric[first[mine] + number], result.corrupted_metric[first[mine] + number]]
        )
        to = np.flatnonzero(number < n_answers[of_pair])
        answer = first[of_pair[to]] + number
        for component, values in result.scores.items():
            sums[component][:, to] += weights[answer][:, None] * values[:, start[answer] + place[to]]
    positions = None
    if result.positions is not None:
        positions = result.positions[start[first[of_pair]] + place]
    scores = {component: values.astype(np.float32) for component, values in sums.items()}
    return Scores(scores, count, metrics[0], metrics[1], positions)


def _weights(pair: EncodedPair) -> np.ndarray:
    """Return with what factor each answer of a pair counts."""
    n_right, n_wrong = len(pair.right_sequences), len(pair.wrong_sequences)
    return np.repeat([1 / n_right, -1 / n_wrong], [n_right, n_wrong])
