"""BLiMP's files: a prefix with a good and a bad continuation, and no corrupted prompt.

Its corrupted prompt is the prefix of another row of the same length, where the caller asks for that
(``--corrupt shuffle``). Rows are exchanged within a window that fits memory. A partner whose right word is this row's
wrong word is taken where there is one, since only then do the two prompts ask for different answers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from attrib_batch.errors import RequestError
from attrib_batch.pairs.encoding.tokens import tokenize
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.options import Corrupt, LeadingSpace
from attrib_batch.pairs.importing.values import required_text, spaced
from attrib_batch.pairs.reading.columns import TableForm
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.importing.options import ImportOptions
    from attrib_batch.pairs.importing.recipe import Look, Reading

_COLUMNS = ("one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad")
WINDOW_ROWS = 10_000
"""Rows among which partners are looked for."""
SAME_ANSWER = "a counterfactual whose right word is not this row's wrong one, for want of another"


@dataclass(frozen=True)
class _Prefix:
    where: str
    number: int
    text: str
    good: str
    bad: str
    template: str | None
    length: int = 0


def recognise(look: Look) -> bool:
    """Return whether there is a prefix with two continuations."""
    return look.has(*_COLUMNS)


def form(options: ImportOptions, look: Look) -> TableForm:  # noqa: ARG001 - as of every recipe
    """Return the form of the table.

    Raises:
        RequestError: nobody says where the corrupted prompt comes from.
    """
    if options.corrupt is not Corrupt.SHUFFLE:
        raise RequestError(
            "the layout has no corrupted prompt: --corrupt shuffle (with --seed) takes the prompt of another row of "
            "the same length"
        )
    return TableForm()


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs, a window at a time."""
    rng = random.Random(reading.options.seed)  # noqa: S311 - no secret depends on it
    prefixes = _prefixes(reading)
    while window := list(islice(prefixes, WINDOW_ROWS)):
        by_length: defaultdict[int, list[_Prefix]] = defaultdict(list)
        for prefix in _measured(window, reading):
            by_length[prefix.length].append(prefix)
        found: list[Pair] = []
        for length in sorted(by_length):
            found += _with_partners(by_length[length], rng, reading)
        yield from sorted(found, key=lambda pair: pair.pair_id)


def _prefixes(reading: Reading) -> Iterator[_Prefix]:
    space = reading.options.leading_space or LeadingSpace.ADD
    for row in reading.source.rows():
        if row.number == 0:
            reading.counts.use(row.values, {*_COLUMNS, "UID"})
        reading.counts.read += 1
        try:
            text = required_text(row.values, _COLUMNS[0])
            (good,), (bad,) = (
                spaced([row.values.get(column)], column, space, reading.counts) for column in _COLUMNS[1:]
            )
        except RowRefusedError as refused:
            reading.counts.refuse(row.where, str(refused))
            continue
        kind = row.values.get("UID")
        yield _Prefix(row.where, row.number, text, good, bad, None if kind is None else str(kind))


def _measured(window: list[_Prefix], reading: Reading) -> Iterator[_Prefix]:
    """Yield the rows with their lengths: in tokens where a tokenizer is given, in words otherwise."""
    texts = [prefix.text for prefix in window]
    given = reading.options.tokenizer
    tokenizer = None if given is None else given.loaded
    if tokenizer is None:
        lengths = [len(text.split()) for text in texts]
        reading.counts.notes = ("prompts of the same length have as many words; with --tokenizer as many tokens",)
    else:
        lengths = [len(ids) for ids in tokenize(tokenizer, texts)["input_ids"]]
    for prefix, length in zip(window, lengths, strict=True):
        yield _Prefix(prefix.where, prefix.number, prefix.text, prefix.good, prefix.bad, prefix.template, length)


def _with_partners(rows: list[_Prefix], rng: random.Random, reading: Reading) -> Iterator[Pair]:
    """Give each row of one length the prefix of another row."""
    by_good: defaultdict[str, list[_Prefix]] = defaultdict(list)
    for row in rows:
        by_good[row.good].append(row)
    for row in rows:
        partner = _draw(row, by_good[row.bad], rng)
        if partner is None:
            partner = _draw(row, rows, rng)
            if partner is None:
                reading.counts.refuse(row.where, "no other prefix of the same length")
                continue
            reading.counts.changed[SAME_ANSWER] += 1
        pair = Pair(row.number, row.text, partner.text, (row.good,), (row.bad,), template=row.template)
        reading.counts.add(row.where, pair)
        yield pair


def _draw(row: _Prefix, others: list[_Prefix], rng: random.Random) -> _Prefix | None:
    """Draw a row with another prefix: at random a few times, then the first one there is."""
    for _ in range(8):
        if others and (found := others[int(rng.random() * len(others))]).text != row.text:
            return found
    return next((other for other in others if other.text != row.text), None)
