"""Align character spans with tokens, so that positions of different prompts can be compared by role."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from attrib_batch.pairs.tokens import PairProblemError
from attrib_batch.schema import FailureReason

if TYPE_CHECKING:
    from attrib_batch.pairs.reader import Role


def roles_per_token(roles: tuple[Role, ...], text: str, offsets: list[tuple[int, int]]) -> list[str | None]:
    """The role of each token; where several hold one, the first in the list."""
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    names: list[str | None] = [None] * len(offsets)
    for role in roles:
        if not 0 <= role.start < role.end <= len(text):
            raise PairProblemError(
                FailureReason.ROLE_OFF_TOKENS,
                f"role {role.name}: [{role.start}, {role.end}) is no span of clean, which has {len(text)} characters",
            )
        # Tokenizers differ in whether a token's offsets hold the space before it: compare without white
        # space.
        span = _trim(text, role.start, role.end)
        first, stop = bisect_right(ends, span[0]), bisect_left(starts, span[1])
        held = _trim(text, starts[first], ends[stop - 1]) if first < stop else (0, 0)
        if span != held:
            raise PairProblemError(
                FailureReason.ROLE_OFF_TOKENS,
                f"role {role.name}: its span holds {text[role.start : role.end]!r}, the tokens there "
                f"{text[held[0] : held[1]]!r}",
            )
        for position in range(first, stop):
            names[position] = names[position] or role.name
    return names


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
