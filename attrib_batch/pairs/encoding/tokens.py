"""Call the tokenizer: many texts at once, each distinct text once, without special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.pairs.reading.reader import Pair
    from attrib_batch.tables import FailureReason


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used here."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a sequence."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a sequence."""

    @property
    def unk_token_id(self) -> int | None:
        """The token that stands for unknown text."""

    @property
    def name_or_path(self) -> str:
        """Where it was loaded from."""

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens and their ids."""

    def __call__(self, text: list[str], **options: Any) -> Mapping[str, Any]:
        """Tokenise texts: ``input_ids`` and, where asked for, ``offset_mapping``, one list per text."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the vocabulary's entries of tokens."""

    def decode(self, token_ids: list[int], **options: Any) -> str:
        """Return the text of tokens."""


class PairProblemError(Exception):
    """A pair cannot be scored; becomes a ``PairProblem`` and never reaches a caller of ``encode_pairs``."""

    def __init__(self, reason: FailureReason, message: str, *, longer_by: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.longer_by = longer_by


@dataclass(frozen=True)
class PromptTokens:
    """The token ids of texts, and the character offsets of the tokens of those that carry roles."""

    ids: dict[str, tuple[int, ...]]
    offsets: dict[str, list[tuple[int, int]]]


def tokenize_prompts(pairs: Sequence[Pair], tokenizer: Tokenizer) -> PromptTokens:
    """Tokenise each distinct text once; a pair and its mirror share theirs."""
    with_roles = dict.fromkeys(
        pair.clean
        for pair in pairs
        if pair.clean is not None and pair.roles and not all(role.by_token for role in pair.roles)
    )
    others = dict.fromkeys(
        text for pair in pairs for text in (pair.clean, pair.corrupted) if text is not None and text not in with_roles
    )
    ids: dict[str, tuple[int, ...]] = {}
    offsets: dict[str, list[tuple[int, int]]] = {}
    if with_roles:
        encoded = tokenize(tokenizer, list(with_roles), return_offsets_mapping=True)
        ids.update(zip(with_roles, map(tuple, encoded["input_ids"]), strict=True))
        offsets.update(zip(with_roles, encoded["offset_mapping"], strict=True))
    if others:
        encoded = tokenize(tokenizer, list(others))
        ids.update(zip(others, map(tuple, encoded["input_ids"]), strict=True))
    return PromptTokens(ids, offsets)


def tokenize(tokenizer: Tokenizer, texts: list[str], **options: bool) -> Mapping[str, Any]:
    """Tokenise texts as they stand: no special token is added, nothing is cut off or padded."""
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
