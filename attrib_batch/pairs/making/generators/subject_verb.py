"""Subject-verb agreement: the verb must have the number of its subject, whatever noun stands next to it.

Three structures: nothing between the two, a relative clause, or a prepositional phrase. The noun in between (the
attractor) has the other number as often as the same.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.frames import fill_slots
from attrib_batch.pairs.making.generator import Draft, Generator
from attrib_batch.pairs.making.generators.words import PAST_VERBS, PEOPLE, PREPOSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from attrib_batch.pairs.making.draws import Draws

_SIMPLE, _CLAUSE, _PHRASE = "simple", "relative_clause", "prepositional_phrase"
_FRAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        _SIMPLE: (
            "The {subject}",
            "Everybody knows that the {subject}",
            "In the end the {subject}",
            "I was told that the {subject}",
        ),
        _CLAUSE: (
            "The {subject} {that} the {attractor} {verb}",
            "I was told that the {subject} {that} the {attractor} {verb}",
            "Last year the {subject} {that} the {attractor} {verb}",
        ),
        _PHRASE: (
            "The {subject} {preposition} the {attractor}",
            "Everybody knows that the {subject} {preposition} the {attractor}",
            "In the end the {subject} {preposition} the {attractor}",
        ),
    }
)
_ANSWERS = ((" is", " has", " was"), (" are", " have", " were"))
"""By number: one, several."""


def _begin(draws: Draws, counterfactual: str, structure: str) -> Callable[[], Draft]:  # noqa: ARG001 - there is one
    frames = _FRAMES[structure]

    def draft() -> Draft:
        number = draws.below(len(frames))
        subject, attractor = draws.distinct(PEOPLE, 2)
        words = {
            "that": "that",
            "verb": draws.one(PAST_VERBS),
            "preposition": draws.one(PREPOSITIONS),
            "attractor": _in_number(attractor, draws.below(2)),
        }
        several = draws.below(2)
        clean, corrupted = (
            fill_slots(frames[number], {**words, "subject": _in_number(subject, of)}) for of in (several, 1 - several)
        )
        return Draft(clean, corrupted, _ANSWERS[several], _ANSWERS[1 - several], f"{structure}-{number:02d}")

    return draft


def _in_number(noun: str, several: int) -> str:
    return noun + "s" if several else noun


SUBJECT_VERB = Generator(
    name="subject_verb",
    explanation='a verb for its subject: "The teacher that the boys liked" -> " is", " has" or " was"',
    counterfactuals=MappingProxyType({"number": "The subject has the other number."}),
    begin=_begin,
    roles=("subject", "that", "preposition", "attractor", "verb"),
    paper="Linzen et al. 2016 (arXiv 1611.01368); Marks et al. 2024 (arXiv 2403.19647)",
    mirrored=frozenset({"number"}),
    variants=MappingProxyType(
        {
            _SIMPLE: "The subject stands next to its verb.",
            _CLAUSE: "A relative clause about the subject stands in between.",
            _PHRASE: "A prepositional phrase stands in between.",
        }
    ),
    variant_option="structure",
)
