"""What the tokenizer is asked: prompts in batches, answers alone, each distinct text once.

**Answers** are tokenised alone, with the space they begin with. Tokenizers of the SentencePiece kind with a
dummy prefix (Llama 2) make two tokens of a leading space and a word on its own, though they make one after
other text; an answer that begins with a space and is not one token alone is therefore also looked at after
another word, and the token it is there counts. An answer without a leading space is taken as it stands: under
byte-level tokenizers that is the token that continues a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from attrib_batch.schema import FailureReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.pairs.reader import Pair

_ANCHOR = "to"


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a sequence."""

    @property
    def unk_token_id(self) -> int | None:
        """The token that stands for unknown text."""

    def __call__(self, text: list[str], **options: Any) -> Mapping[str, Any]:
        """Tokenise texts: ``input_ids`` and, where asked for, ``offset_mapping``, one list per text."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The vocabulary's entries of tokens."""


class PairProblemError(Exception):
    """A pair cannot be scored; becomes a ``PairProblem`` and never reaches a caller of ``encode_pairs``."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PromptTokens:
    """The token ids of texts, and the character offsets of the tokens of those that carry roles."""

    ids: dict[str, tuple[int, ...]]
    offsets: dict[str, list[tuple[int, int]]]


def tokenize_prompts(pairs: Sequence[Pair], tokenizer: Tokenizer) -> PromptTokens:
    """Tokenise each distinct text once: beside its mirror a pair costs nothing."""
    with_roles = dict.fromkeys(pair.clean for pair in pairs if pair.roles and pair.clean is not None)
    others = dict.fromkeys(
        text for pair in pairs for text in (pair.clean, pair.corrupted) if text is not None and text not in with_roles
    )
    ids: dict[str, tuple[int, ...]] = {}
    offsets: dict[str, list[tuple[int, int]]] = {}
    if with_roles:
        encoded = _tokenize(tokenizer, list(with_roles), return_offsets_mapping=True)
        ids.update(zip(with_roles, map(tuple, encoded["input_ids"]), strict=True))
        offsets.update(zip(with_roles, encoded["offset_mapping"], strict=True))
    if others:
        encoded = _tokenize(tokenizer, list(others))
        ids.update(zip(others, map(tuple, encoded["input_ids"]), strict=True))
    return PromptTokens(ids, offsets)


def _tokenize(tokenizer: Tokenizer, texts: list[str], **options: bool) -> Mapping[str, Any]:
    # Some tokenizer files state truncation or padding, which would change prompts without a word.
    return tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )


class AnswerTokens:
    """The tokens of answer strings, tokenised once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self._wanted: dict[str, None] = {}

    def want(self, answers: tuple[str | None, ...] | None) -> None:
        """Note answers that are going to be asked for."""
        self._wanted.update(dict.fromkeys(text for text in answers or () if text))

    def learn(self) -> None:
        """Tokenise all noted answers at once."""
        texts = list(self._wanted)
        if not texts:
            return
        self._ids.update(zip(texts, _tokenize(self._tokenizer, texts)["input_ids"], strict=True))
        spaced = [text for text in texts if text[0] == " " and len(self._ids[text]) > 1]
        if not spaced:
            return
        anchor, *joined = _tokenize(self._tokenizer, [_ANCHOR, *(_ANCHOR + text for text in spaced)])["input_ids"]
        for text, tokens in zip(spaced, joined, strict=True):
            if len(tokens) == len(anchor) + 1 and tokens[: len(anchor)] == anchor:
                self._ids[text] = tokens[-1:]

    def of(self, column: str, answers: tuple[str | None, ...] | None) -> tuple[int, ...]:
        """One token per answer, or the problem with the first that has not."""
        if answers is None:
            raise PairProblemError(FailureReason.NULL_VALUE, f"{column} is null")
        if not answers:
            raise PairProblemError(FailureReason.NO_ANSWER, f"{column} is an empty list")
        return tuple(self._one(column, answer) for answer in answers)

    def _one(self, column: str, answer: str | None) -> int:
        if answer is None:
            raise PairProblemError(FailureReason.NULL_VALUE, f"{column} holds a null")
        if not answer:
            raise PairProblemError(FailureReason.NO_ANSWER, f"{column} holds an empty string")
        ids = self._ids[answer]
        if len(ids) != 1:
            pieces = self._tokenizer.convert_ids_to_tokens(ids)
            raise PairProblemError(
                FailureReason.MULTI_TOKEN_ANSWER,
                f"{column}: {answer!r} is {len(ids)} tokens {pieces}, not one",
            )
        if ids[0] == self._tokenizer.unk_token_id:
            raise PairProblemError(
                FailureReason.MULTI_TOKEN_ANSWER, f"{column}: the tokenizer has no token for {answer!r}"
            )
        return ids[0]
