"""Turn pairs into tokens: the same length on both sides, single-token answers, roles per position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError
from attrib_batch.pairs.alignment import roles_per_token
from attrib_batch.pairs.tokens import (
    AnswerTokens,
    PairProblemError,
    PromptTokens,
    Tokenizer,
    tokenize_prompts,
)
from attrib_batch.schema import FailureReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.pairs.reader import Pair

__all__ = ["EncodedPair", "PairProblem", "Tokenizer", "encode_pairs"]


@dataclass(frozen=True)
class EncodedPair:
    """A pair that can be scored, as token ids."""

    pair_id: int
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    """As long as ``clean``; a prepended BOS is the first token of both."""
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    first_difference: int
    """The first position where the prompts differ."""
    roles: tuple[str | None, ...]
    """For each position the role whose span holds it; None for a prepended BOS."""
    template: str | None
    group: int | None

    @property
    def n_tokens(self) -> int:
        """The length of each prompt, a prepended BOS counted."""
        return len(self.clean)


@dataclass(frozen=True)
class PairProblem:
    """A pair that cannot be scored, and why."""

    pair_id: int
    reason: FailureReason
    message: str


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, prepend_bos: bool, max_tokens: int | None = None
) -> list[EncodedPair | PairProblem]:
    """Tokenise and align pairs; one result per pair, in order. Nothing is dropped.

    Args:
        pairs: a few hundred to a few thousand at a time.
        tokenizer: a fast tokenizer (roles need its character offsets).
        prepend_bos: put the tokenizer's BOS token before both prompts.
        max_tokens: the longest prompt the model takes, a prepended BOS counted.

    Raises:
        ModelError: ``prepend_bos`` is set and the tokenizer has no BOS token.
    """
    bos: tuple[int, ...] = ()
    if prepend_bos:
        if tokenizer.bos_token_id is None:
            raise ModelError("prepend_bos is true, but the model's tokenizer has no BOS token: set prepend_bos: false")
        bos = (tokenizer.bos_token_id,)
    prompts = tokenize_prompts(pairs, tokenizer)
    answers = AnswerTokens(tokenizer)
    for pair in pairs:
        answers.want(pair.answers)
        answers.want(pair.wrong_answers)
    answers.learn()
    results: list[EncodedPair | PairProblem] = []
    for pair in pairs:
        try:
            results.append(_encode(pair, prompts, answers, bos, max_tokens))
        except PairProblemError as problem:
            results.append(PairProblem(pair.pair_id, problem.reason, str(problem)))
    return results


def _encode(
    pair: Pair,
    prompts: PromptTokens,
    answers: AnswerTokens,
    bos: tuple[int, ...],
    max_tokens: int | None,
) -> EncodedPair:
    if pair.clean is None or pair.corrupted is None:
        raise PairProblemError(FailureReason.NULL_VALUE, f"{'clean' if pair.clean is None else 'corrupted'} is null")
    clean, corrupted = prompts.ids[pair.clean], prompts.ids[pair.corrupted]
    for name, text, tokens in (("clean", pair.clean, clean), ("corrupted", pair.corrupted, corrupted)):
        if not tokens or not text.strip():
            raise PairProblemError(FailureReason.EMPTY_PROMPT, f"{name} is empty: {text!r}")
    right = answers.of("answers", pair.answers)
    wrong = answers.of("wrong_answers", pair.wrong_answers)
    if len(clean) != len(corrupted):
        raise PairProblemError(
            FailureReason.UNEQUAL_LENGTH,
            f"clean is {len(clean)} tokens and corrupted {len(corrupted)}: positions can be compared only "
            "between prompts of one length",
        )
    n_tokens = len(bos) + len(clean)
    if max_tokens is not None and n_tokens > max_tokens:
        raise PairProblemError(
            FailureReason.TOO_LONG, f"the prompts are {n_tokens} tokens; the model takes {max_tokens}"
        )
    if clean == corrupted:
        raise PairProblemError(FailureReason.IDENTICAL_PROMPTS, "clean and corrupted are the same tokens")
    _check_disjoint(pair, right, wrong)
    roles: list[str | None] = [None] * len(clean)
    if pair.roles:
        roles = roles_per_token(pair.roles, pair.clean, prompts.offsets[pair.clean])
    return EncodedPair(
        pair_id=pair.pair_id,
        clean=bos + clean,
        corrupted=bos + corrupted,
        answers=right,
        wrong_answers=wrong,
        first_difference=len(bos) + next(i for i, t in enumerate(clean) if t != corrupted[i]),
        roles=(*[None] * len(bos), *roles),
        template=pair.template,
        group=pair.group,
    )


def _check_disjoint(pair: Pair, right: tuple[int, ...], wrong: tuple[int, ...]) -> None:
    both = set(right) & set(wrong)
    if both:
        shared = next(text for text, token in zip(pair.answers or (), right, strict=True) if token in both)
        raise PairProblemError(
            FailureReason.AMBIGUOUS_ANSWER,
            f"{shared!r} is in answers and in wrong_answers, or shares its token with one there",
        )
