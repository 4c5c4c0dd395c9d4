"""Align character spans with tokens, so that positions of different prompts can be compared by role."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.pairs.encoding.tokens import PairProblemError
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from attrib_batch.pairs.reading.reader import Role


@dataclass(frozen=True)
class AlignedRoles:
    """The roles of a prompt's tokens."""

    names: tuple[str | None, ...]
    """The role of each token; where several hold one, the first in the list."""
    hidden: tuple[str, ...]
    """A sentence for each role that lost tokens to one before it in the list."""


def align_roles(roles: tuple[Role, ...], text: str, offsets: list[tuple[int, int]], n_tokens: int) -> AlignedRoles:
    """Give each token the role whose span holds it.

    Args:
        roles: spans of characters, or of tokens.
        text: the prompt.
        offsets: the characters of each token; needed for spans of characters alone.
        n_tokens: how many tokens the prompt has.

    Raises:
        PairProblemError: a span is not one of ``text``, or begins or ends inside a token.
    """
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    names: list[str | None] = [None] * n_tokens
    hidden: list[str] = []
    for role in roles:
        if role.by_token:
            first, stop = _token_span(role, n_tokens)
        else:
            first, stop = _span_of_characters(role, text, starts, ends)
        others = [name for name in names[first:stop] if name not in {None, role.name}]
        if others:
            hidden.append(
                f"role {role.name}: {len(others)} of its {stop - first} tokens count as {others[0]}, which stands "
                "before it in the list"
            )
        for position in range(first, stop):
            names[position] = names[position] or role.name
    return AlignedRoles(tuple(names), tuple(hidden))


def _token_span(role: Role, n_tokens: int) -> tuple[int, int]:
    base = n_tokens if role.start < 0 else 0
    first, stop = base + role.start, base + role.end
    if not 0 <= first < stop <= n_tokens:
        raise PairProblemError(
            FailureReason.ROLE_OFF_TOKENS,
            f"role {role.name}: [{role.start}, {role.end}) is no span of clean's tokens, of which it has {n_tokens}",
        )
    return first, stop


def _span_of_characters(role: Role, text: str, starts: list[int], ends: list[int]) -> tuple[int, int]:
    if not 0 <= role.start < role.end <= len(text):
        raise PairProblemError(
            FailureReason.ROLE_OFF_TOKENS,
            f"role {role.name}: [{role.start}, {role.end}) is no span of clean, which has {len(text)} characters",
        )
    # Tokenizers differ in whether a token's offsets hold the space before it: compare without white space.
    span = _trim(text, role.start, role.end)
    first, stop = bisect_right(ends, span[0]), bisect_left(starts, span[1])
    held = _trim(text, starts[first], ends[stop - 1]) if first < stop else (0, 0)
    if span != held:
        raise PairProblemError(
            FailureReason.ROLE_OFF_TOKENS,
            f"role {role.name}: its span holds {text[role.start : role.end]!r}, the tokens there "
            f"{text[held[0] : held[1]]!r}",
        )
    return first, stop


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
