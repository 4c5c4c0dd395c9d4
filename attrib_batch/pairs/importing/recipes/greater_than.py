"""EAP-IG's greater-than: a span of years, and the two digits with which its first year ends.

The right answers are all larger endings and the wrong ones all others, that of the first year itself among them;
``prob_diff`` adds the probabilities of each set up (Hanna et al. 2023).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.values import required_text
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

_TWO_DIGITS = re.compile(r"\d\d?", re.ASCII)
_YEAR = re.compile(r"\d\d(\d\d)(?!\d)", re.ASCII)
ENDINGS = tuple(f"{number:02d}" for number in range(100))
"""The two-digit endings, in order."""


def recognise(look: Look) -> bool:
    """Return whether there are two prompts and a label of two digits, and no token ids."""
    if not look.has("clean", "corrupted", "label") or any(name.endswith("_idx") for name in look.first):
        return False
    return _TWO_DIGITS.fullmatch(str(look.first["label"])) is not None


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs."""

    def convert(row: Row) -> Pair:
        clean, corrupted = required_text(row.values, "clean"), required_text(row.values, "corrupted")
        label = str(row.values.get("label"))
        if _TWO_DIGITS.fullmatch(label) is None:
            raise RowRefusedError("label is no number of two digits")
        year = int(label)
        if year == len(ENDINGS) - 1:
            raise RowRefusedError("label is 99, and no larger ending exists")
        # A cell 05 that a spreadsheet has turned into 5 is still 05 in the prompt.
        if ENDINGS[year] not in _YEAR.findall(clean):
            raise RowRefusedError("label is not the ending of a year in clean")
        reading.counts.changed["a two-digit label turned into all larger endings and all others"] += 1
        return Pair(row.number, clean, corrupted, ENDINGS[year + 1 :], ENDINGS[: year + 1], task="greater_than")

    yield from reading.each(convert, ("clean", "corrupted", "label"))
