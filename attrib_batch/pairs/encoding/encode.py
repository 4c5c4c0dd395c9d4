"""Turn pairs into tokens: the same length on both sides, single-token answers, roles per position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from attrib_batch.pairs.encoding.alignment import AlignedRoles, align_roles
from attrib_batch.pairs.encoding.answers import AnswerTokens
from attrib_batch.pairs.encoding.bos import bos_id
from attrib_batch.pairs.encoding.tokens import PairProblemError, PromptTokens, Tokenizer, tokenize_prompts
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.pairs.reading.reader import Answers, Pair

__all__ = ["EncodedPair", "PairProblem", "PairWarning", "Tokenizer", "encode_pairs"]


class PairWarning(StrEnum):
    """What may be wrong with a pair that is scored all the same."""

    ROLE_HIDDEN = "role_hidden"
    """A role lost tokens to a role before it in the list: a token counts as one role."""
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - the name of a warning, no secret
    """A prompt holds text that the tokenizer has no token for."""


@dataclass(frozen=True)
class EncodedPair:
    """A pair that can be scored, as token ids."""

    pair_id: int
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    """As long as ``clean``; a prepended BOS is the first token of both."""
    answers: tuple[int, ...]
    """A set: each token stands here once, in the order in which the table names them first."""
    wrong_answers: tuple[int, ...]
    """A set as well, without a token of ``answers``."""
    first_difference: int
    """The first position where the prompts differ; 0 where there is no corrupted one and ``clean`` stands for it."""
    roles: tuple[str | None, ...]
    """For each position the role whose span holds it; None for a prepended BOS."""
    template: str | None
    group: int | None
    warnings: tuple[tuple[PairWarning, str], ...] = ()
    """What may be wrong with it, each kind once, with a message."""
    task: str | None = None
    right_sequences: tuple[tuple[int, ...], ...] = ()
    """Where whole answers are asked for, these in place of ``answers``: a set of answers of one length in tokens."""
    wrong_sequences: tuple[tuple[int, ...], ...] = ()
    """As many tokens each; without one of ``right_sequences``."""
    continuation: tuple[int, ...] = ()
    """What stands behind both prompts in a forward pass, and is no part of them: an answer's tokens but the last."""

    @property
    def n_tokens(self) -> int:
        """The length of each prompt, a prepended BOS counted."""
        return len(self.clean)

    @property
    def n_continuations(self) -> int:
        """How often each prompt is computed: once for every whole answer."""
        return len(self.right_sequences) + len(self.wrong_sequences) or 1

    @property
    def n_predicted(self) -> int:
        """How many tokens of an answer are predicted."""
        return len(self.right_sequences[0]) if self.right_sequences else len(self.continuation) + 1

    @property
    def n_row_tokens(self) -> int:
        """How many tokens of a forward pass it is: a prompt, and an answer but its last token."""
        return self.n_tokens + self.n_predicted - 1


@dataclass(frozen=True)
class PairProblem:
    """A pair that cannot be scored, and why."""

    pair_id: int
    reason: FailureReason
    message: str
    longer_by: int = 0
    """Of prompts of unequal length: how many tokens corrupted has more than clean."""


@dataclass(frozen=True)
class _Model:
    """The limits that a model and its tokenizer set."""

    tokenizer: Tokenizer
    bos: tuple[int, ...]
    """The token that stands before both prompts; empty where there is none."""
    unknown: int | None
    """The token of text that the tokenizer does not know; None where it knows all text."""
    max_tokens: int | None
    vocabulary_size: int | None


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    *,
    prepend_bos: bool,
    max_tokens: int | None = None,
    vocabulary_size: int | None = None,
    allow_boundary: bool = False,
    bos_token: str | None = None,
    whole_answers: bool = False,
    against_corrupted: bool = True,
) -> list[EncodedPair | PairProblem]:
    """Tokenise and align pairs; one result per pair, in order. Nothing is dropped.

    Args:
        pairs: a few hundred to a few thousand at a time.
        tokenizer: a fast tokenizer (roles need its character offsets).
        prepend_bos: put the tokenizer's BOS token before both prompts.
        max_tokens: the longest prompt the model takes, a prepended BOS counted.
        vocabulary_size: how many tokens the model has; ids from there on are none of its own. Not checked where absent.
        allow_boundary: take an answer that does not follow its prompt's own tokens as the token that it is on its own.
            See `attrib_batch.pairs.encoding.answers`.
        bos_token: the token that ``prepend_bos`` puts there, as the vocabulary writes it; the tokenizer's own BOS
            where absent.
        whole_answers: take answers of any length in tokens, as ``right_sequences`` and ``wrong_sequences``; all of a
            pair must have the same. Otherwise an answer is one token.
        against_corrupted: whether clean prompts are compared with corrupted ones. Otherwise these are not looked at and
            may be absent: clean prompts stand in their place, and positions count from the first one on.

    Raises:
        ModelError: ``prepend_bos`` is set and the tokenizer has no such token, or the model does not know it.
    """
    model = _Model(
        tokenizer=tokenizer,
        bos=(bos_id(tokenizer, vocabulary_size, bos_token),) if prepend_bos else (),
        unknown=_unknown(tokenizer),
        max_tokens=max_tokens,
        vocabulary_size=vocabulary_size,
    )
    if not against_corrupted:
        pairs = [replace(pair, corrupted=pair.clean) for pair in pairs]
    prompts = tokenize_prompts(pairs, tokenizer)
    answers = AnswerTokens(pairs, prompts, tokenizer, allow_boundary=allow_boundary, whole=whole_answers)
    results: list[EncodedPair | PairProblem] = []
    for pair in pairs:
        try:
            results.append(_encode(pair, prompts, answers, model, against_corrupted=against_corrupted))
        except PairProblemError as problem:
            results.append(PairProblem(pair.pair_id, problem.reason, str(problem), problem.longer_by))
    return results


def _unknown(tokenizer: Tokenizer) -> int | None:
    unknown = tokenizer.unk_token_id
    # GPT-2's tokenizer, which knows all text, states its BOS token as the unknown one too.
    return None if unknown in {tokenizer.bos_token_id, tokenizer.eos_token_id} else unknown


def _encode(
    pair: Pair, prompts: PromptTokens, answers: AnswerTokens, model: _Model, *, against_corrupted: bool
) -> EncodedPair:
    if pair.clean is None or pair.corrupted is None:
        raise PairProblemError(FailureReason.NULL_VALUE, f"{'clean' if pair.clean is None else 'corrupted'} is null")
    clean, corrupted = prompts.ids[pair.clean], prompts.ids[pair.corrupted]
    if pair.from_chat and model.bos and model.bos == clean[:1] == corrupted[:1]:
        # The template has written it.
        model = replace(model, bos=())
    _check_prompt("clean", pair.clean, clean, model)
    _check_prompt("corrupted", pair.corrupted, corrupted, model)
    right = answers.of("answers", pair.answers, pair.clean, pair.corrupted)
    wrong = answers.of("wrong_answers", pair.wrong_answers, pair.clean, pair.corrupted)
    for column, found in (("answers", right), ("wrong_answers", wrong)):
        for tokens in found:
            _check_vocabulary(column, tokens, model)
    n_predicted = _one_length(right, wrong)
    if len(clean) != len(corrupted):
        raise PairProblemError(
            FailureReason.UNEQUAL_LENGTH,
            f"clean is {len(clean)} tokens and corrupted {len(corrupted)}: positions can be compared only "
            "between prompts of one length",
            longer_by=len(corrupted) - len(clean),
        )
    n_tokens = len(model.bos) + len(clean) + n_predicted - 1
    if model.max_tokens is not None and n_tokens > model.max_tokens:
        what = "the prompts" if n_predicted == 1 else "the prompts with all but the last token of an answer"
        raise PairProblemError(
            FailureReason.TOO_LONG, f"{what} are {n_tokens} tokens; the model takes {model.max_tokens}"
        )
    if against_corrupted and clean == corrupted:
        raise PairProblemError(FailureReason.IDENTICAL_PROMPTS, "clean and corrupted are the same tokens")
    _check_disjoint(pair.answers, right, wrong)
    roles = AlignedRoles((None,) * len(clean), ())
    if pair.roles:
        roles = align_roles(pair.roles, pair.clean, prompts.offsets.get(pair.clean, []), len(clean))
    return EncodedPair(
        pair_id=pair.pair_id,
        clean=model.bos + clean,
        corrupted=model.bos + corrupted,
        answers=() if answers.whole else tuple(dict.fromkeys(token for (token,) in right)),
        wrong_answers=() if answers.whole else tuple(dict.fromkeys(token for (token,) in wrong)),
        first_difference=_first_difference(model.bos + clean, model.bos + corrupted),
        roles=(*[None] * len(model.bos), *roles.names),
        template=pair.template,
        task=pair.task,
        group=pair.group,
        right_sequences=tuple(dict.fromkeys(right)) if answers.whole else (),
        wrong_sequences=tuple(dict.fromkeys(wrong)) if answers.whole else (),
        warnings=(*_hidden_roles(roles), *_unknown_tokens(clean, corrupted, model)),
    )


def _check_prompt(name: str, text: str, tokens: tuple[int, ...], model: _Model) -> None:
    if not tokens or not text.strip():
        raise PairProblemError(FailureReason.EMPTY_PROMPT, f"{name} is empty: {text!r}")
    if model.bos and model.bos == tokens[:1]:
        (bos,) = model.tokenizer.convert_ids_to_tokens(list(model.bos))
        raise PairProblemError(
            FailureReason.DOUBLE_BOS,
            f"{name} begins with the BOS token {bos!r} already, and prepend_bos puts another one before it: take it "
            "out of the text, or set prepend_bos: false",
        )
    _check_vocabulary(name, tokens, model)


def _check_vocabulary(column: str, tokens: tuple[int, ...], model: _Model) -> None:
    size = model.vocabulary_size
    if min(tokens) < 0 or (size is not None and max(tokens) >= size):
        outside = next(token for token in tokens if token < 0 or (size is not None and token >= size))
        ids = "negative" if size is None else f"outside the model's vocabulary, whose ids go from 0 to {size - 1}"
        raise PairProblemError(FailureReason.OFF_VOCABULARY, f"{column}: the token id {outside} is {ids}")


def _first_difference(clean: tuple[int, ...], corrupted: tuple[int, ...]) -> int:
    return next((i for i, token in enumerate(clean) if token != corrupted[i]), 0)


def _one_length(right: Sequence[tuple[int, ...]], wrong: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens each answer is.

    Raises:
        PairProblemError: they are not of one length.
    """
    lengths = [sorted({len(tokens) for tokens in column}) for column in (right, wrong)]
    if lengths[0] != lengths[1] or len(lengths[0]) > 1:
        counts = [" or ".join(map(str, of)) for of in lengths]
        raise PairProblemError(
            FailureReason.UNEQUAL_ANSWERS,
            f"answers are {counts[0]} tokens and wrong_answers {counts[1]}: log-probabilities can be compared only "
            "between answers of one length",
        )
    return lengths[0][0]


def _check_disjoint(answers: Answers, right: Sequence[tuple[int, ...]], wrong: Sequence[tuple[int, ...]]) -> None:
    both = set(right) & set(wrong)
    if both:
        shared = next(answer for answer, tokens in zip(answers or (), right, strict=True) if tokens in both)
        raise PairProblemError(
            FailureReason.AMBIGUOUS_ANSWER,
            f"{shared!r} is in answers and in wrong_answers, or shares its "
            f"{'token' if len(right[0]) == 1 else 'tokens'} with one there",
        )


def _hidden_roles(roles: AlignedRoles) -> list[tuple[PairWarning, str]]:
    return [(PairWarning.ROLE_HIDDEN, "; ".join(roles.hidden))] if roles.hidden else []


def _unknown_tokens(clean: tuple[int, ...], corrupted: tuple[int, ...], model: _Model) -> list[tuple[PairWarning, str]]:
    if model.unknown is None or not (model.unknown in clean or model.unknown in corrupted):
        return []
    (token,) = model.tokenizer.convert_ids_to_tokens([model.unknown])
    counts = [
        f"{tokens.count(model.unknown)} of the {len(tokens)} tokens of {name}"
        for name, tokens in (("clean", clean), ("corrupted", corrupted))
        if model.unknown in tokens
    ]
    return [(PairWarning.UNKNOWN_TOKEN, f"{' and '.join(counts)} are {token!r}: text that the tokenizer does not know")]
