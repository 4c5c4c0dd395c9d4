"""Capitals: a country is named, and its capital is asked for. A task of factual recall (Meng et al. 2022)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.frames import fill_slots
from attrib_batch.pairs.making.generator import Draft, Generator
from attrib_batch.pairs.making.generators.words import CAPITALS as _CAPITALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.pairs.making.draws import Draws

_FRAMES = (
    "The name of the capital of {country} is",
    "Asked for the capital city of {country}, every pupil answers",
    "The government of {country} sits in the capital,",
    "Of all places in {country} she liked the capital best, the city of",
)


def _begin(draws: Draws, counterfactual: str, variant: str) -> Callable[[], Draft]:  # noqa: ARG001 - there is one
    def draft() -> Draft:
        number = draws.below(len(_FRAMES))
        (country, capital), (other, others_capital) = draws.distinct(_CAPITALS, 2)
        clean, corrupted = (fill_slots(_FRAMES[number], {"country": name}) for name in (country, other))
        return Draft(clean, corrupted, (f" {capital}",), (f" {others_capital}",), f"{number:02d}")

    return draft


CAPITALS = Generator(
    name="capitals",
    explanation='the capital of a country: "The name of the capital of France is" -> " Paris"',
    counterfactuals=MappingProxyType({"country": "Another country is named."}),
    begin=_begin,
    roles=("country",),
    paper="Meng et al. 2022 (arXiv 2202.05262)",
    mirrored=frozenset({"country"}),
)
