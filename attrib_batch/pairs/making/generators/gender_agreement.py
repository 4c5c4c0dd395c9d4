"""Gender agreement: a pronoun that refers to a person must agree with the gender that a first name suggests.

A task of studies of gender bias (Vig et al. 2020, arXiv 2004.12265) and of agreement (BLiMP; Warstadt et al. 2020).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.frames import fill_slots
from attrib_batch.pairs.making.generator import Draft, Generator
from attrib_batch.pairs.making.ioi_words import FIRST_NAMES, PLACES

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.pairs.making.draws import Draws

_FRAMES = (
    "Yesterday {name} went home early because",
    "When {name} came back from the {place},",
    "The door was locked, and {name} could not get in, because",
    "After the visit to the {place}, {name} was so tired that",
    "Nobody believed what {name} told them, although",
    "As soon as {name} had left the {place}, everyone said that",
    "The letter made {name} happy, and for days",
)
_FIRST_WOMAN = FIRST_NAMES.index("Alice")
_BY_GENDER = (FIRST_NAMES[:_FIRST_WOMAN], FIRST_NAMES[_FIRST_WOMAN:])
_PRONOUNS = ((" he",), (" she",))


def _begin(draws: Draws, counterfactual: str, variant: str) -> Callable[[], Draft]:  # noqa: ARG001 - there is one
    def draft() -> Draft:
        number, place, gender = draws.below(len(_FRAMES)), draws.one(PLACES), draws.below(2)
        clean, corrupted = (
            fill_slots(_FRAMES[number], {"name": draws.one(_BY_GENDER[of]), "place": place})
            for of in (gender, 1 - gender)
        )
        return Draft(clean, corrupted, _PRONOUNS[gender], _PRONOUNS[1 - gender], f"{number:02d}")

    return draft


GENDER_AGREEMENT = Generator(
    name="gender_agreement",
    explanation='a pronoun for a first name: "Yesterday Laura went home early because" -> " she"',
    counterfactuals=MappingProxyType({"gender": "The name becomes one of the other gender."}),
    begin=_begin,
    roles=("name",),
    paper="Vig et al. 2020 (arXiv 2004.12265); Warstadt et al. 2020 (arXiv 1912.00582)",
    mirrored=frozenset({"gender"}),
)
