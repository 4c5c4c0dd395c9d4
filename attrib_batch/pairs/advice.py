"""What to do about pairs that cannot be scored, by reason: one sentence each."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Mapping

ADVICE: Mapping[FailureReason, str] = MappingProxyType(
    {
        FailureReason.NULL_VALUE: "Fill the value in, or leave the row out of the table.",
        FailureReason.EMPTY_PROMPT: "Write the prompt, or leave the row out of the table.",
        FailureReason.DOUBLE_BOS: (
            "Take the BOS out of the text, set prepend_bos: false, or have `pairs import --chat-template` make the "
            "text."
        ),
        FailureReason.IDENTICAL_PROMPTS: "Change the corrupted prompt: without a difference there is nothing to patch.",
        FailureReason.UNEQUAL_LENGTH: (
            "Choose words of as many tokens; `pairs import TABLE --repair --tokenizer MODEL --out FILE` exchanges "
            "single words for others of the table."
        ),
        FailureReason.TOO_LONG: "Shorten the prompts, or use a model that takes longer ones.",
        FailureReason.NO_ANSWER: "Give every pair at least one right and one wrong answer.",
        FailureReason.MULTI_TOKEN_ANSWER: (
            "Choose answers of one token, with their leading space; `pairs import --answers first-token` takes the "
            "first one, and --repair exchanges names that are too long. Metric sequence_logprob_diff takes whole ones."
        ),
        FailureReason.UNEQUAL_ANSWERS: "Choose right and wrong answers of as many tokens.",
        FailureReason.BOUNDARY: (
            "Move the white space at the prompt's end to the answer, or say allow_boundary: true (--allow-boundary "
            "here)."
        ),
        FailureReason.AMBIGUOUS_ANSWER: (
            "Leave out what is right and wrong at once, or has the same first token as what is."
        ),
        FailureReason.OFF_VOCABULARY: "Use the model whose tokenizer the ids are of, or write answers as texts.",
        FailureReason.ROLE_OFF_TOKENS: (
            "Make the role's span begin and end where tokens do, or state it by token (start_token, end_token)."
        ),
        FailureReason.DUPLICATE_ID: "Give every row a pair_id of its own, or leave the column out.",
    }
)
"""For every reason that is known before a model runs."""
