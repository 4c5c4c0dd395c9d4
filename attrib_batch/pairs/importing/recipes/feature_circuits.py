"""Sparse feature circuits' files: a prefix and its patch, each with its answer, one JSON object a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.pairs.importing.options import LeadingSpace
from attrib_batch.pairs.importing.values import required_text, spaced
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

_COLUMNS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")


def recognise(look: Look) -> bool:
    """Return whether there are two prefixes with an answer each."""
    return look.has(*_COLUMNS)


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs; ``case`` becomes their template."""
    space = reading.options.leading_space or LeadingSpace.KEEP

    def convert(row: Row) -> Pair:
        right, wrong = (
            spaced([row.values.get(column)], column, space, reading.counts)
            for column in ("clean_answer", "patch_answer")
        )
        case = row.values.get("case")
        return Pair(
            row.number,
            required_text(row.values, "clean_prefix"),
            required_text(row.values, "patch_prefix"),
            right,
            wrong,
            template=None if case is None else str(case),
        )

    yield from reading.each(convert, (*_COLUMNS, "case"))
