"""Multiple choice: the colour of a thing is said and then asked for, and the answer is a choice's letter.

The task of copying colours (Wiegreffe et al. 2024, arXiv 2407.15018; MIB). Every prompt of a table begins with the same
worked examples, so that prefixes are long and the model knows the form of the answer.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.frames import Filled, fill_slots
from attrib_batch.pairs.making.generator import Draft, Generator
from attrib_batch.pairs.making.generators.words import COLORED, COLORS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attrib_batch.pairs.making.draws import Draws

_QUESTION = """Question: The {thing} is {color}. Which color does the {same_thing} have?
{letter_1}. {choice_1}
{letter_2}. {choice_2}
{letter_3}. {choice_3}
{letter_4}. {choice_4}
Answer:"""
_SHOTS = 3
_CHOICES = 4
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_POSITION, _LETTER, _COLOR = "answer_position", "random_letter", "color"


def _begin(draws: Draws, counterfactual: str, variant: str) -> Callable[[], Draft]:  # noqa: ARG001 - there is one
    # One example for each of three letters, in a drawn order, so that none of them is the usual answer.
    shots = "".join(
        f"{_question(thing, _LETTERS[:_CHOICES], draws.distinct(COLORS, _CHOICES), right).text} {_LETTERS[right]}\n\n"
        for thing, right in zip(draws.distinct(COLORED, _SHOTS), draws.distinct(range(_CHOICES), _SHOTS), strict=True)
    )

    def draft() -> Draft:
        thing, colors = draws.one(COLORED), draws.distinct(COLORS, _CHOICES)
        right, other = draws.distinct(range(_CHOICES), 2)
        letters = new_letters = _LETTERS[:_CHOICES]
        new_colors, new_right = list(colors), right
        if counterfactual == _POSITION:
            new_colors[right], new_colors[other] = colors[other], colors[right]
            new_right = other
        elif counterfactual == _COLOR:
            new_right = other
        else:
            new_letters = tuple(draws.distinct(_LETTERS, _CHOICES, besides=letters))
        clean = _question(thing, letters, colors, right, shots)
        corrupted = _question(thing, new_letters, new_colors, new_right, shots)
        return Draft(clean, corrupted, (f" {letters[right]}",), (f" {new_letters[new_right]}",), counterfactual)

    return draft


def _question(thing: str, letters: Sequence[str], colors: Sequence[str], right: int, before: str = "") -> Filled:
    words = {"thing": thing, "same_thing": thing, "color": colors[right]}
    words |= {f"letter_{n}": letter for n, letter in enumerate(letters, 1)}
    words |= {f"choice_{n}": color for n, color in enumerate(colors, 1)}
    filled = fill_slots(_QUESTION, words)
    spans = {"right_letter": filled.spans[f"letter_{right + 1}"], "right_choice": filled.spans[f"choice_{right + 1}"]}
    spans |= {name: filled.spans[name] for name in ("thing", "color")}
    shifted = {name: (start + len(before), end + len(before)) for name, (start, end) in spans.items()}
    return Filled(before + filled.text, shifted)


MCQA = Generator(
    name="mcqa",
    explanation='the letter of a color after worked examples: "The box is green. ... B. green ... Answer:" -> " B"',
    counterfactuals=MappingProxyType(
        {
            _POSITION: "The right choice changes places with another one.",
            _COLOR: "The thing has the color of another choice.",
            _LETTER: "The choices have other letters.",
        }
    ),
    begin=_begin,
    roles=("thing", "color", "right_letter", "right_choice"),
    paper="Wiegreffe et al. 2024 (arXiv 2407.15018); Mueller et al. 2025 (MIB, arXiv 2504.13151)",
    mirrored=frozenset({_POSITION, _COLOR, _LETTER}),
)
