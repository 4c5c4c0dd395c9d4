"""The tables: every Arrow schema, once.

Long format: one row per (pair, component, layer, head, position). Scores are raw, in the metric's units (logits for
``logit_diff``); the normalised score is computed when a table is read, so that no stored number depends on the batch
or chunk it was computed in.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 2
"""Raised whenever a stored column changes its name, type or meaning; part of a run's fingerprint.

Version 1 had positions of 16 bits.
"""
READABLE_SCHEMA_VERSIONS = (1, SCHEMA_VERSION)
"""Versions whose tables can be read, summarised and reported."""


class FailureReason(StrEnum):
    """Why a pair has no scores: the ``error`` column of the failures table."""

    NULL_VALUE = "null_value"
    EMPTY_PROMPT = "empty_prompt"
    DOUBLE_BOS = "double_bos"
    IDENTICAL_PROMPTS = "identical_prompts"
    UNEQUAL_LENGTH = "unequal_length"
    TOO_LONG = "too_long"
    NO_ANSWER = "no_answer"
    MULTI_TOKEN_ANSWER = "multi_token_answer"  # noqa: S105 - the name of a reason, no secret
    UNEQUAL_ANSWERS = "unequal_answers"
    BOUNDARY = "boundary"
    AMBIGUOUS_ANSWER = "ambiguous_answer"
    OFF_VOCABULARY = "off_vocabulary"
    ROLE_OFF_TOKENS = "role_off_tokens"
    DUPLICATE_ID = "duplicate_id"
    NON_FINITE = "non_finite"
    SCORING_ERROR = "scoring_error"
    WORKER_LOST = "worker_lost"


class Stage(StrEnum):
    """Where a pair failed: the ``stage`` column of the failures table."""

    VALIDATE = "validate"
    SCORE = "score"
    WORKER = "worker"


ROLE_SPAN = pa.struct([("name", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
"""Half-open character span [start, end) in ``clean``."""

_names = pa.dictionary(pa.int32(), pa.string())

PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),  # unique; the row number where the column is absent
        pa.field("clean", pa.string()),  # the prompt whose behaviour is asked about
        pa.field("corrupted", pa.string()),  # its counterfactual, of the same length in tokens
        # Right continuations of clean, with their leading space; or token ids, as list<int64>.
        pa.field("answers", pa.list_(pa.string())),
        pa.field("wrong_answers", pa.list_(pa.string())),  # wrong continuations of clean, likewise
        # Character spans in clean that positions are aligned by; or spans of its tokens, as start_token and end_token.
        pa.field("roles", pa.list_(ROLE_SPAN)),
        pa.field("task", pa.string()),  # for grouping
        pa.field("template", pa.string()),  # for grouping
        pa.field("group", pa.int64()),  # pairs that are one sampling unit (a pair and its mirror)
    ]
)
"""The input. Only ``clean``, ``corrupted``, ``answers`` and ``wrong_answers`` are required."""

REQUIRED_PAIR_COLUMNS = ("clean", "corrupted", "answers", "wrong_answers")

SCORES = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("component", _names, nullable=False),  # a Component
        pa.field("layer", pa.int16(), nullable=False),  # 0-based
        pa.field("head", pa.int16()),  # null without heads; a key/value head index for k, v under grouped queries
        pa.field("position", pa.int32(), nullable=False),  # 0-based token position, a prepended BOS counted
        pa.field("role", _names),  # the role whose span holds this position
        pa.field("score", pa.float32(), nullable=False),  # raw: metric units, finite
    ]
)
"""The product: one row per (pair, component, layer, head, position)."""

MEASURED = pa.schema(
    [
        *(SCORES.field(name) for name in ("pair_id", "component", "layer", "head", "position", "role")),
        pa.field("estimate", pa.float32(), nullable=False),  # raw, as scores: what the first order gave
    ]
)
"""One row per score that a method of estimates measured instead: the score is the effect, and this what it replaced."""

BASELINES = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),  # length of both prompts, a prepended BOS counted
        pa.field("first_difference", pa.int32(), nullable=False),  # first position where the prompts differ
        pa.field("clean_metric", pa.float64(), nullable=False),
        # Of a method that replaces activations by zeros or means: that of clean with everything replaced at once.
        pa.field("corrupted_metric", pa.float64(), nullable=False),
        pa.field("template", pa.string()),
        pa.field("group", pa.int64()),
    ]
)
"""One row per scored pair."""

PROMPTS = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("clean_tokens", pa.list_(pa.string()), nullable=False),  # the text of each token, leading space kept
        # As many; a prepended BOS is in both. Those of clean where a method looks at no corrupted prompt.
        pa.field("corrupted_tokens", pa.list_(pa.string()), nullable=False),
        pa.field("task", pa.string()),  # as in the table of pairs; the template is in the baselines
    ]
)
"""One row per scored pair: its prompts as the model reads them. A token that is no text by itself, such as one byte of
a character, stands as the tokenizer's vocabulary shows it."""

FAILURES = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),  # a Stage
        pa.field("error", pa.string(), nullable=False),  # a FailureReason
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),  # how often the pair was tried
    ]
)
"""One row per pair that could not be scored."""

MEANS = pa.schema(
    [
        pa.field("component", _names, nullable=False),  # a Component; resid_pre of layer 0 is what enters the model
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("head", pa.int16()),  # null without heads
        pa.field("role", _names),  # null: tokens without a role
        pa.field("n_tokens", pa.int64(), nullable=False),  # how many the mean is over
        pa.field("mean", pa.list_(pa.float64()), nullable=False),  # a number for each feature
    ]
)
"""Mean activations of clean prompts: one row per (component, layer, head, role)."""
