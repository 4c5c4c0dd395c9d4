"""Find the tokens that an answer is: those that follow its prompt; one, unless whole answers are asked for.

Prompt and answer are tokenised together, and what stands behind the prompt's own tokens is the answer. The same text
can be another token elsewhere: SentencePiece tokenizers put a space before a text that stands alone, and a byte-level
tokenizer has one token for ``ing`` and another for `` ing``.

The prompt's own tokens can change when the answer follows: a space at its end becomes part of the next word, digits and
newlines form groups, ``play`` and ``ing`` become ``playing``. A model that has read the prompt's tokens then never
sees text that goes on with this answer. Such a pair is refused as ``boundary``, unless the caller allows it: then the
answer counts as the token that it is on its own. That is its token alone; or, where it begins with a space and is
several tokens alone (tokenizers with a dummy prefix, such as Llama 2's), its token after another word.

The clean prompt decides which token an answer is. Behind the corrupted prompt it must be the same one, since both
forward passes are measured by it; otherwise that is a ``boundary`` too, and where the caller allows it the one after
clean counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.pairs.encoding.tokens import PairProblemError, tokenize
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from attrib_batch.pairs.encoding.tokens import PromptTokens, Tokenizer
    from attrib_batch.pairs.reading.reader import Answers, Pair

_ANCHOR = "to"
_BATCH_CHARACTERS = 1 << 20
"""Of prompts with their answers this much is tokenised at a time: long prompts with many answers are large together."""
_TAIL_CHARACTERS = 24
_TOKENS_SHOWN = 6


@dataclass(frozen=True)
class Continuation:
    """What the tokens of a prompt become when an answer follows it."""

    replaced: tuple[int, ...]
    """The last tokens of the prompt alone that others stand in place of; empty where the prompt keeps its tokens."""
    tokens: tuple[int, ...]
    """All tokens behind those of the prompt that stay: where ``replaced`` is empty, the answer's."""


class AnswerTokens:
    """The tokens of answers behind their prompts; each prompt with an answer is tokenised once."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        prompts: PromptTokens,
        tokenizer: Tokenizer,
        *,
        allow_boundary: bool,
        whole: bool = False,
    ) -> None:
        """Tokenise all answers of ``pairs`` behind both of their prompts, whose tokens ``prompts`` holds.

        An answer is one token, or with ``whole`` as many as there are.
        """
        self.whole = whole
        self._tokenizer = tokenizer
        self._unknown = tokenizer.unk_token_id  # a look-up that takes its time
        self._allow_boundary = allow_boundary
        self._continuations = continuations(pairs, prompts, tokenizer)
        changing = {answer for (_, answer), found in self._continuations.items() if found.replaced}
        self._alone = _tokens_alone(sorted(changing), tokenizer) if allow_boundary else {}

    def of(self, column: str, answers: Answers, clean: str, corrupted: str) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of each answer, in their order; an integer is a token id already.

        Raises:
            PairProblemError: for the first answer that is not one token behind the prompts, or, where whole answers are
                asked for, none at all.
        """
        if answers is None:
            raise PairProblemError(FailureReason.NULL_VALUE, f"{column} is null")
        if not answers:
            raise PairProblemError(FailureReason.NO_ANSWER, f"{column} is an empty list")
        return tuple(self._one(column, answer, clean, corrupted) for answer in answers)

    def _one(self, column: str, answer: str | int | None, clean: str, corrupted: str) -> tuple[int, ...]:
        if isinstance(answer, int):
            return (answer,)
        if answer is None:
            raise PairProblemError(FailureReason.NULL_VALUE, f"{column} holds a null")
        if not answer:
            raise PairProblemError(FailureReason.NO_ANSWER, f"{column} holds an empty string")
        found = self._continuations[clean, answer]
        if found.replaced and not self._allow_boundary:
            raise self._boundary(column, answer, "clean", clean, found)
        tokens = self._checked(column, answer, self._alone[answer] if found.replaced else found.tokens)
        if not self._allow_boundary:
            self._check_corrupted(column, answer, corrupted, tokens)
        return tokens

    def _checked(self, column: str, answer: str, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if not tokens:
            raise PairProblemError(
                FailureReason.NO_ANSWER, f"{column}: the tokenizer makes no token of {answer!r} behind the prompt"
            )
        if len(tokens) > 1 and not self.whole:
            raise PairProblemError(
                FailureReason.MULTI_TOKEN_ANSWER,
                f"{column}: {answer!r} is {len(tokens)} tokens {self._pieces(tokens)}, not one",
            )
        if self._unknown in tokens:
            raise PairProblemError(
                FailureReason.MULTI_TOKEN_ANSWER, f"{column}: the tokenizer has no token for {answer!r}"
            )
        return tokens

    def _check_corrupted(self, column: str, answer: str, corrupted: str, tokens: tuple[int, ...]) -> None:
        found = self._continuations[corrupted, answer]
        if found.replaced:
            raise self._boundary(column, answer, "corrupted", corrupted, found)
        if found.tokens != tokens:
            one = len(tokens) == 1
            raise PairProblemError(
                FailureReason.BOUNDARY,
                f"{column}: {answer!r} is the {'token' if one else 'tokens'} {self._pieces(tokens)} after clean and "
                f"{self._pieces(found.tokens)} after corrupted. Choose an answer that is "
                f"{'one token' if one and not self.whole else 'the same'} after both, or set allow_boundary: true to "
                f"take {'the one' if one else 'those'} after clean",
            )

    def _boundary(self, column: str, answer: str, name: str, prompt: str, found: Continuation) -> PairProblemError:
        tail = prompt if len(prompt) <= _TAIL_CHARACTERS else f"...{prompt[-_TAIL_CHARACTERS:]}"
        bare = tail.rstrip()
        advice = "End the prompt earlier, before the token that the answer changes"
        if bare != tail:
            advice = f"Move the white space to the answer: {bare.split()[-1]!r} + {tail[len(bare) :] + answer!r}"
        taken = (
            "the answer as the token that it is on its own" if name == "clean" else "the token that it is after clean"
        )
        return PairProblemError(
            FailureReason.BOUNDARY,
            f"{column}: the tokens at the end of {name} change when {answer!r} follows: {tail!r} ends in "
            f"{self._pieces(found.replaced)}, {tail + answer!r} in {self._pieces(found.tokens)}. {advice}; or set "
            f"allow_boundary: true to take {taken}",
        )

    def _pieces(self, tokens: Sequence[int]) -> list[str]:
        pieces = self._tokenizer.convert_ids_to_tokens(list(tokens[:_TOKENS_SHOWN]))
        return [*pieces, "..."] if len(tokens) > _TOKENS_SHOWN else pieces


def continuations(
    pairs: Sequence[Pair], prompts: PromptTokens, tokenizer: Tokenizer
) -> dict[tuple[str, str], Continuation]:
    """Tokenise every prompt together with each of its pair's answers, by prompt and answer."""
    wanted = dict.fromkeys(
        (prompt, answer)
        for pair in pairs
        for prompt in (pair.clean, pair.corrupted)
        for answer in (*(pair.answers or ()), *(pair.wrong_answers or ()))
        if prompt and isinstance(answer, str) and answer
    )
    found: dict[tuple[str, str], Continuation] = {}
    for batch in _batches(wanted):
        encoded = tokenize(tokenizer, [prompt + answer for prompt, answer in batch])["input_ids"]
        for (prompt, answer), joined in zip(batch, encoded, strict=True):
            found[prompt, answer] = _continuation(prompts.ids[prompt], tuple(joined))
    return found


def _batches(wanted: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    characters = 0
    for prompt, answer in wanted:
        batch.append((prompt, answer))
        characters += len(prompt) + len(answer)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _continuation(prompt: tuple[int, ...], joined: tuple[int, ...]) -> Continuation:
    kept = len(prompt)
    if joined[:kept] != prompt:
        kept = next((i for i, (a, b) in enumerate(zip(prompt, joined, strict=False)) if a != b), len(joined))
    return Continuation(prompt[kept:], joined[kept:])


def _tokens_alone(texts: list[str], tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """Tokenise answers without their prompts: alone, or after a word where a dummy prefix splits them."""
    if not texts:
        return {}
    found = dict(zip(texts, map(tuple, tokenize(tokenizer, texts)["input_ids"]), strict=True))
    spaced = [text for text in texts if text[0] == " " and len(found[text]) > 1]
    if spaced:
        anchor, *joined = tokenize(tokenizer, [_ANCHOR, *(_ANCHOR + text for text in spaced)])["input_ids"]
        for text, tokens in zip(spaced, joined, strict=True):
            if len(tokens) > len(anchor) and tokens[: len(anchor)] == anchor:
                found[text] = tuple(tokens[len(anchor) :])
    return found
