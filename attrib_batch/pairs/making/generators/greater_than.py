"""Greater-than (Hanna et al. 2023, arXiv 2305.00586): a span of years whose end must lie behind its beginning.

The prompt breaks off inside the last year. Right are all endings larger than the first year's, wrong all others, which
``prob_diff`` adds up. Tokenizers differ in what an ending is: GPT-2's has tokens of two digits, SmolLM2's and many
others of one. With one digit the first year's own decade is neither right nor wrong: its later years are possible.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.frames import fill_slots
from attrib_batch.pairs.making.generator import Draft, Generator
from attrib_batch.pairs.making.generators.words import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.pairs.making.draws import Draws

_FRAMES = (
    "The {event} began in the year {XX}{YY} and ended in the year {XX2}",
    "The {event} that started in {XX}{YY} was not over until {XX2}",
    "Historians agree that the {event} went on from {XX}{YY} to {XX2}",
    "From {XX}{YY} on there was a {event}, and it came to its end in {XX2}",
)
_ONE, _TWO = "one", "two"
_CENTURIES = {_ONE: ("11", "12", "13", "14", "15", "16", "17"), _TWO: ("16", "17")}
"""In the latter GPT-2's tokenizer cuts every year into its century and its ending, but for the first one, 00."""


def _begin(draws: Draws, counterfactual: str, digits: str) -> Callable[[], Draft]:  # noqa: ARG001 - there is one
    def draft() -> Draft:
        number, event, century = draws.below(len(_FRAMES)), draws.one(EVENTS), draws.one(_CENTURIES[digits])
        # So that there are larger endings and smaller ones, by one digit too.
        year = 20 + draws.below(70)
        clean, corrupted = (
            fill_slots(_FRAMES[number], {"event": event, "XX": century, "YY": ending, "XX2": century})
            for ending in (f"{year:02d}", "01")
        )
        right, wrong = _endings(year, digits)
        return Draft(clean, corrupted, right, wrong, f"{digits}-{number:02d}")

    return draft


def _endings(year: int, digits: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the endings behind a year of the century, and those that are not."""
    if digits == _TWO:
        return tuple(f"{n:02d}" for n in range(year + 1, 100)), tuple(f"{n:02d}" for n in range(1, year + 1))
    decade = year // 10
    return tuple(map(str, range(decade + 1, 10))), tuple(map(str, range(decade)))


GREATER_THAN = Generator(
    name="greater_than",
    explanation='a span of years: "... began in the year 1741 and ended in the year 17" -> "42" to "99"',
    counterfactuals=MappingProxyType({"year_01": "The first year ends in 01, so that every ending is larger."}),
    begin=_begin,
    roles=("event", "XX", "YY"),
    paper="Hanna et al. 2023 (arXiv 2305.00586)",
    variants=MappingProxyType(
        {
            _TWO: "Answers are two digits, for tokenizers with such tokens (GPT-2's).",
            _ONE: "Answers are one digit, for tokenizers that split numbers into digits (SmolLM2's, Llama 2's).",
        }
    ),
    variant_option="digits",
)
