"""Whole answers are all the tokens that follow their prompt."""

from __future__ import annotations

from typing import Any

import pytest

from attrib_batch.pairs.encoding.encode import EncodedPair, PairProblem
from attrib_batch.pairs.reading.reader import Pair
from attrib_batch.tables import FailureReason
from tests.pairs.encoding.test_answers import byte_level, metaspace, outcome

WHOLE_WORDS = byte_level("Ġno", "Ġnew", "Ġyork", "Ġold", "Ġrome", "Ġis", "Ġwas")


def whole(given: Pair, **options: Any) -> EncodedPair | PairProblem:
    return outcome(WHOLE_WORDS, given, whole_answers=True, **options)


def test_whole_answers_are_all_tokens_behind_the_prompt() -> None:
    given = Pair(7, "it is", "it was", (" new york", " old york", " new york"), (" old rome",))
    found = whole(given)
    assert isinstance(found, EncodedPair), found
    texts = [WHOLE_WORDS.convert_ids_to_tokens(list(tokens)) for tokens in found.right_sequences]
    assert texts == [["Ġnew", "Ġyork"], ["Ġold", "Ġyork"]]
    assert [WHOLE_WORDS.convert_ids_to_tokens(list(t)) for t in found.wrong_sequences] == [["Ġold", "Ġrome"]]
    assert (found.answers, found.wrong_answers) == ((), ())
    assert (found.n_continuations, found.n_predicted, found.n_row_tokens) == (3, 2, found.n_tokens + 1)


@pytest.mark.parametrize(
    ("right", "wrong", "reason", "message"),
    [
        ((" new york",), (" rome",), FailureReason.UNEQUAL_ANSWERS, "answers are 2 tokens and wrong_answers 1"),
        ((" new york", " rome"), (" no",), FailureReason.UNEQUAL_ANSWERS, "answers are 1 or 2 tokens and wrong"),
        ((" new york",), (" new york", " old rome"), FailureReason.AMBIGUOUS_ANSWER, "' new york' is in answers and"),
        ((), (" rome",), FailureReason.NO_ANSWER, "answers is an empty list"),
        ((" new rome",), (10**6,), FailureReason.OFF_VOCABULARY, "wrong_answers: the token id 1000000 is outside"),
    ],
)
def test_whole_answers_that_cannot_be_compared(
    right: tuple[str, ...], wrong: tuple[str | int, ...], reason: FailureReason, message: str
) -> None:
    found = whole(Pair(7, "it is", "it was", right, wrong), vocabulary_size=1000)
    assert isinstance(found, PairProblem), found
    assert found.reason is reason
    assert message in found.message


def test_a_whole_answer_changes_no_token_of_either_prompt() -> None:
    """A prompt that ends in a space loses it to the answer; allowed, the answer is what it is on its own."""
    given = Pair(7, "it is ", "it was ", ("new york",), ("old rome",))
    found = whole(given)
    assert isinstance(found, PairProblem), found
    assert found.reason is FailureReason.BOUNDARY
    allowed = whole(given, allow_boundary=True)
    alone = WHOLE_WORDS(["new york"], add_special_tokens=False)["input_ids"][0]
    assert isinstance(allowed, PairProblem) or allowed.right_sequences == (tuple(alone),)


def test_whole_answers_on_their_own_after_a_dummy_prefix() -> None:
    """They begin with a space, which stands alone as a token of its own; after a word it is the answer's."""
    tokenizer = metaspace("▁five", "▁six", "▁is")
    given = Pair(7, "2 is ", "3 is ", (" five six",), (" six five",))
    found = outcome(tokenizer, given, whole_answers=True, allow_boundary=True)
    assert isinstance(found, EncodedPair), found
    assert tokenizer.convert_ids_to_tokens(list(found.right_sequences[0]))[-2:] == ["▁five", "▁six"]


def test_a_prompt_with_its_answer_must_fit_the_model() -> None:
    given = Pair(7, "it is", "it was", (" new york",), (" old rome",))
    fits = whole(given)
    assert isinstance(fits, EncodedPair)
    assert isinstance(whole(given, max_tokens=fits.n_row_tokens), EncodedPair)
    found = whole(given, max_tokens=fits.n_row_tokens - 1)
    assert isinstance(found, PairProblem)
    assert found.reason is FailureReason.TOO_LONG
    assert "all but the last token of an answer" in found.message
