"""Count what an import read, changed and refused, and why."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from attrib_batch.pairs.reading.reader import Pair

REPEATS_LOOKED_FOR = 1 << 18
"""Among so many first rows repeats are counted: what is remembered of a row must not grow with the file."""
_HASH_BYTES = 8


class RowRefusedError(Exception):
    """A row cannot become a pair; it is counted under the message, which is the same for all rows of its kind."""


@dataclass
class Counts:
    """What became of the rows of a file, while it is imported and afterwards."""

    read: int = 0
    """Rows read."""
    changed: Counter[str] = field(default_factory=Counter)
    """What was done to values, and how often."""
    refused: Counter[str] = field(default_factory=Counter)
    """Why rows became no pair, and how many."""
    first_refused: dict[str, str] = field(default_factory=dict)
    """Where the first row of each reason stands."""
    left: Counter[str] = field(default_factory=Counter)
    """What is wrong with pairs that were imported all the same, and how many."""
    unused: tuple[str, ...] = ()
    """Columns that nothing was taken from."""
    notes: tuple[str, ...] = ()
    """What else is to be known of the pairs."""
    repeated: int = 0
    """Rows that an earlier one is equal to, prompts and answers; they are imported all the same."""
    first_repeated: str = ""
    _seen: set[bytes] = field(default_factory=set, repr=False)
    _n_pairs: int = 0

    def use(self, columns: Iterable[str], used: Container[str]) -> None:
        """Note which of the columns of a file are of use."""
        self.unused = tuple(column for column in columns if column not in used)

    def refuse(self, where: str, reason: str) -> None:
        """Count a row that becomes no pair."""
        self.refused[reason] += 1
        self.first_refused.setdefault(reason, where)

    def add(self, where: str, pair: Pair) -> None:
        """Count a row that becomes a pair."""
        self._n_pairs += 1
        if self._n_pairs > REPEATS_LOOKED_FOR:
            return
        content = repr((pair.clean, pair.corrupted, pair.answers, pair.wrong_answers)).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
        if key in self._seen:
            self.repeated += 1
            self.first_repeated = self.first_repeated or where
        self._seen.add(key)

    @property
    def all_compared(self) -> bool:
        """Whether repeats were looked for among all rows."""
        return self._n_pairs <= REPEATS_LOOKED_FOR


def render_counts(counts: Counts) -> str:
    """Return the counts as plain text, without a line feed at its end."""
    lines = [f"read: {counts.read:,} rows"]
    lines += [f"changed: {count:,} times {what}" for what, count in counts.changed.most_common()]
    lines += [f"left: {count:,} {what}" for what, count in counts.left.most_common()]
    lines += [f"note: {note}" for note in counts.notes]
    if counts.unused:
        lines.append(f"not used: {', '.join(counts.unused)}")
    if counts.repeated:
        looked = "" if counts.all_compared else f", of the first {REPEATS_LOOKED_FOR:,}"
        first = counts.first_repeated
        lines.append(f"repeated: {counts.repeated:,} rows{looked}; each is imported all the same (first: {first})")
    for reason, count in counts.refused.most_common():
        lines.append(f"refused: {count:,} rows: {reason} (first: {counts.first_refused[reason]})")
    return "\n".join(lines)
