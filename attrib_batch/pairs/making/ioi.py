"""Indirect object identification (IOI; Wang et al. 2022, arXiv 2211.00593): a generator of prompt pairs.

A clean prompt names two people, repeats one of them (the subject, S) and ends where the other (the indirect
object, IO) is the right continuation. A counterfactual exchanges names alone:

``s2_to_io``
    The second mention of S becomes IO, so the right continuation becomes S.
``s2_to_random``
    The second mention of S becomes a third name, so both IO and S are possible.
``abc``
    All three mentions become three other names (the paper's p_ABC): the sentence stays, the
    people are others.

**Mirrors.** A pair is followed by its mirror, in which clean and corrupted change places, in the same
``group``. The mirror's ``answers`` are the pair's ``wrong_answers`` and the other way round. Under
``s2_to_io`` that is what its clean prompt asks for, and the mirror of an ABBA prompt is a BABA prompt, with
the roles and the template of one. Under the others the mirror's clean prompt has no single right answer;
exchanging the answers keeps clean minus corrupted metric of one sign over a table, so that means over it do
not cancel. Its roles are then those of the same places in the pair: whatever stands where IO, S1 and S2
stood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.making.draws import Draws
from attrib_batch.pairs.making.ioi_words import FIRST_NAMES, FRAMES, OBJECTS, PLACES
from attrib_batch.pairs.reading.reader import Pair, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SLOT = re.compile(r"\{(first|second|third|place|object)\}")
_WORD = re.compile(r"\w+")


class Counterfactual(StrEnum):
    """What the corrupted prompt changes."""

    S2_TO_IO = "s2_to_io"
    S2_TO_RANDOM = "s2_to_random"
    ABC = "abc"


class Order(StrEnum):
    """Which name stands where: A is the indirect object, B the subject; the last letter is the answer."""

    ABBA = "abba"
    BABA = "baba"

    @property
    def other(self) -> Order:
        """The order with the first two names exchanged."""
        return Order.BABA if self is Order.ABBA else Order.ABBA


@dataclass(frozen=True)
class NamedPrompt:
    """A frame filled with words, and the character span of each of its three names."""

    text: str
    spans: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    def roles(self, order: Order) -> tuple[Role, ...]:
        """Return IO, S1, S1+1 (the word after S1), S2 and end (the last word) as spans in ``text``."""
        (io, s1), s2 = self.spans[:2] if order is Order.ABBA else self.spans[1::-1], self.spans[2]
        after = _WORD.search(self.text, s1[1])
        if after is None:
            raise ValueError(f"no word follows the subject in {self.text!r}")
        named = {"IO": io, "S1": s1, "S1+1": after.span(), "S2": s2, "end": _last_word(self.text)}
        return tuple(Role(name, start, end) for name, (start, end) in named.items())


def fill(frame: str, names: Sequence[str], *, place: str = "", thing: str = "") -> NamedPrompt:
    """Fill a frame's slots ``{first}``, ``{second}``, ``{third}``, ``{place}`` and ``{object}``.

    Args:
        frame: the wording; each name slot stands in it once.
        names: the three names in the order of the slots.
        place: the word for ``{place}``.
        thing: the word for ``{object}``.
    """
    words = {"first": names[0], "second": names[1], "third": names[2], "place": place, "object": thing}
    spans: dict[str, tuple[int, int]] = {}
    text, done = "", 0
    for slot in _SLOT.finditer(frame):
        text += frame[done : slot.start()]
        spans[slot[1]] = (len(text), len(text) + len(words[slot[1]]))
        text += words[slot[1]]
        done = slot.end()
    return NamedPrompt(text + frame[done:], (spans["first"], spans["second"], spans["third"]))


def generate_ioi(
    count: int, seed: int, counterfactual: Counterfactual | str = Counterfactual.S2_TO_IO, mirror: bool = True
) -> Iterator[Pair]:
    """Generate ``count`` IOI pairs, one at a time; the same arguments give the same rows on every platform.

    Args:
        count: number of rows, mirrors included; where it is odd the last pair has no mirror.
        seed: any integer. Without mirrors the rows are those that a table with mirrors has at even places.
        counterfactual: what the corrupted prompts change.
        mirror: follow every pair by its mirror, in the same ``group``; otherwise ``group`` is null.

    Raises:
        DatasetError: at once, for a count below 1 or an unknown counterfactual.
    """
    if count < 1:
        raise DatasetError(f"count must be at least 1, not {count}")
    if counterfactual not in set(Counterfactual):
        raise DatasetError(f"unknown counterfactual {counterfactual!r}: choose one of {', '.join(Counterfactual)}")
    return _generate(count, Draws(seed), Counterfactual(counterfactual), mirror)


def _generate(count: int, draws: Draws, counterfactual: Counterfactual, mirror: bool) -> Iterator[Pair]:
    step = 2 if mirror else 1
    for pair_id in range(0, count, step):
        number = draws.below(len(FRAMES))
        order = Order.ABBA if draws.below(2) == 0 else Order.BABA
        io, s, *others = draws.distinct(FIRST_NAMES, 5)
        place, thing = draws.one(PLACES), draws.one(OBJECTS)
        clean_names = (io, s, s) if order is Order.ABBA else (s, io, s)
        corrupted_names = {
            Counterfactual.S2_TO_IO: (*clean_names[:2], io),
            Counterfactual.S2_TO_RANDOM: (*clean_names[:2], others[0]),
            Counterfactual.ABC: tuple(others),
        }[counterfactual]
        clean = fill(FRAMES[number], clean_names, place=place, thing=thing)
        corrupted = fill(FRAMES[number], corrupted_names, place=place, thing=thing)
        group = pair_id // 2 if mirror else None
        yield ioi_pair(pair_id, (clean, corrupted), (io, s), order=order, template=f"{order}-{number:02d}", group=group)
        if mirror and pair_id + 1 < count:
            # Under s2_to_io alone the corrupted prompt repeats a name too, and what was IO is its subject.
            turned = order.other if counterfactual is Counterfactual.S2_TO_IO else order
            yield ioi_pair(
                pair_id + 1,
                (corrupted, clean),
                (s, io),
                order=turned,
                template=f"{turned}-{number:02d}",
                group=group,
            )


def ioi_pair(
    pair_id: int,
    prompts: tuple[NamedPrompt, NamedPrompt],
    answers: tuple[str, str],
    *,
    order: Order,
    template: str,
    group: int | None,
) -> Pair:
    """Make a pair of its clean and corrupted prompt, its right and wrong name, and the clean prompt's order."""
    clean, corrupted = prompts
    right, wrong = answers
    return Pair(
        pair_id=pair_id,
        clean=clean.text,
        corrupted=corrupted.text,
        answers=(f" {right}",),
        wrong_answers=(f" {wrong}",),
        roles=clean.roles(order),
        task="ioi",
        template=template,
        group=group,
    )


def _last_word(text: str) -> tuple[int, int]:
    return text.rindex(" ") + 1, len(text)
