"""auto-circuit's files: one JSON object with a list of prompts, and token positions that hold for all of them.

``word_idxs`` names positions of the prompts' own tokens, as many as there are words of interest; a negative one counts
from the end. They become roles. ``seq_labels`` are captions for every position, which nothing here needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.options import LeadingSpace, Positions
from attrib_batch.pairs.importing.values import required_list, required_text, spaced
from attrib_batch.pairs.reading.columns import TableForm
from attrib_batch.pairs.reading.reader import Pair, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

_WORDS = "word_idxs"


def recognise(look: Look) -> bool:
    """Return whether the rows have auto-circuit's keys."""
    return look.has("clean", "corrupt", "answers", "wrong_answers")


def form(options: ImportOptions, look: Look) -> TableForm:  # noqa: ARG001 - as of every recipe
    """Return the form of the table, whose roles are by token where the file has any."""
    return TableForm(token_roles=_WORDS in look.head)


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs, each with the roles that the file states once."""
    space = reading.options.leading_space or LeadingSpace.KEEP
    head = reading.source.head
    roles = _roles(head.get(_WORDS) or {}, reading)
    reading.counts.use(head, {_WORDS})

    def convert(row: Row) -> Pair:
        right, wrong = (
            spaced(required_list(row.values, column), column, space, reading.counts)
            for column in ("answers", "wrong_answers")
        )
        clean, corrupted = required_text(row.values, "clean"), required_text(row.values, "corrupt")
        return Pair(row.number, clean, corrupted, right, wrong, roles)

    yield from reading.each(convert)


def _roles(words: Any, reading: Reading) -> tuple[Role, ...]:
    shift = 1 if reading.options.positions is Positions.WITH_BOS else 0
    if not isinstance(words, dict) or not all(type(index) is int for index in words.values()):
        raise DatasetError(
            f"{reading.source.path}: {_WORDS} is {words!r}, not an object from names to token positions."
        )
    positions = {name: index if index < 0 else index - shift for name, index in words.items()}
    return tuple(Role(name, index, index + 1, by_token=True) for name, index in positions.items())
