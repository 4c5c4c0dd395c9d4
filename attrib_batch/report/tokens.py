"""Token texts as a page shows them: cut where they are long, and with nothing in them that could move other text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_CHARACTERS = 48
"""Of one token."""
_MARK = "\N{HORIZONTAL ELLIPSIS}"
_VISIBLE = {
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\t": "\N{RIGHTWARDS ARROW}",
    "\r": "\N{SYMBOL FOR CARRIAGE RETURN}",
}
_JOINS = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}
"""Format characters that emoji and some scripts need, and that move nothing."""


@dataclass(frozen=True)
class TokenAxis:
    """The token at each position of prompts of one wording and one length."""

    texts: list[str]
    """With a star where it differs between pairs."""
    varies: bool


def shown(token: str) -> str:
    """Return a token's text with its control and direction marks spelt out, cut to `MOST_CHARACTERS` with a mark."""
    text = "".join(map(_shown_character, token[: MOST_CHARACTERS + 1]))
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}{_MARK}"


def token_axis(prompts: Sequence[Sequence[str]], n_tokens: int) -> TokenAxis | None:
    """Return what stands at each position of some prompts of one wording; None where they do not have that length."""
    if not prompts or any(len(prompt) != n_tokens for prompt in prompts):
        return None
    differs = [len(set(column)) > 1 for column in zip(*prompts, strict=True)]
    texts = [
        f"{shown(token).strip() or '␣'}{'*' if star else ''}" for token, star in zip(prompts[0], differs, strict=True)
    ]
    return TokenAxis(texts, any(differs))


def _shown_character(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    # Direction marks would turn the text around them; control characters would vanish.
    if unicodedata.category(character) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"} and character not in _JOINS:
        return f"\N{MATHEMATICAL LEFT ANGLE BRACKET}{ord(character):04X}\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
    return character
