"""The text of each token, for people who read prompts token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from attrib_batch.pairs.encoding.tokens import Tokenizer

_WORD_START = "▁"
"""What SentencePiece vocabularies write for a space."""
_NO_TEXT = "\ufffd"
"""What decoders give for bytes that are no UTF-8 by themselves."""


class TokenTexts:
    """The texts of tokens, each decoded once, by itself.

    A leading space is part of the text. A token that is no text by itself, such as one byte of a character, stands as
    the tokenizer's vocabulary shows it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def of(self, tokens: Iterable[int]) -> Mapping[int, str]:
        """Return the texts of these tokens and of all that were asked for before; not for several threads at once."""
        unknown = sorted(set(tokens) - self._texts.keys())
        for token, entry in zip(unknown, self._tokenizer.convert_ids_to_tokens(unknown), strict=True):
            self._texts[token] = self._text(token, entry or "")
        return self._texts

    def _text(self, token: int, entry: str) -> str:
        # Tidying up would join punctuation to the word before it, which is another token.
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if not text or _NO_TEXT in text:
            return entry.replace(_WORD_START, " ") or text
        # Decoders of these vocabularies drop a space that a whole text begins with.
        spaces = len(entry) - len(entry.lstrip(_WORD_START))
        return " " * spaces + text.replace(_WORD_START, " ").lstrip(" ") if spaces else text
