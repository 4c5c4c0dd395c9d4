"""Fill the slots of a wording with words, and remember where each of them stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.pairs.reading.reader import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SLOT = re.compile(r"\{(\w+)\}")
_LAST_WORD = re.compile(r"(\w+|[^\w\s])\s*\Z")
END = "end"
"""The role of a prompt's last word or mark."""


@dataclass(frozen=True)
class Filled:
    """A wording filled with words, and the character span of each slot, by its name."""

    text: str
    spans: Mapping[str, tuple[int, int]]

    def roles(self, names: Iterable[str]) -> tuple[Role, ...]:
        """Return those of the slots that the wording has as roles, and its end unless that is one of them."""
        found = [Role(name, *self.spans[name]) for name in names if name in self.spans]
        last = _LAST_WORD.search(self.text)
        if last is None:
            raise ValueError(f"no word in {self.text!r}")
        start, end = last.span(1)
        ends = any(role.start <= start and end <= role.end for role in found)
        return tuple(found) if ends else (*found, Role(END, start, end))


def fill_slots(wording: str, words: Mapping[str, str]) -> Filled:
    """Fill the slots ``{name}`` of a wording; a slot that stands there twice is known by its first place."""
    spans: dict[str, tuple[int, int]] = {}
    text, done = "", 0
    for slot in _SLOT.finditer(wording):
        text += wording[done : slot.start()]
        spans.setdefault(slot[1], (len(text), len(text) + len(words[slot[1]])))
        text += words[slot[1]]
        done = slot.end()
    return Filled(text + wording[done:], spans)
