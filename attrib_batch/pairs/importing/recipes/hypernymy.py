"""EAP-IG's hypernymy: answers as Python lists in cells, without the space before a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.pairs.importing.options import LeadingSpace
from attrib_batch.pairs.importing.values import required_list, required_text, spaced
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

_COLUMNS = ("clean", "corrupted", "answers", "corrupted_answers")


def recognise(look: Look) -> bool:
    """Return whether there are two prompts with the answers of each."""
    return look.has(*_COLUMNS)


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs: what answers the corrupted prompt is wrong after the clean one."""
    space = reading.options.leading_space or LeadingSpace.ADD

    def convert(row: Row) -> Pair:
        right, wrong = (
            spaced(required_list(row.values, column), column, space, reading.counts)
            for column in ("answers", "corrupted_answers")
        )
        clean, corrupted = required_text(row.values, "clean"), required_text(row.values, "corrupted")
        return Pair(row.number, clean, corrupted, right, wrong)

    yield from reading.each(convert, _COLUMNS)
