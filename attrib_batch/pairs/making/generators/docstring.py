"""Docstrings (Heimersheim and Janiak 2023): the next documented argument is the next one in the function's head.

Roles are those of the paper: ``A_def``, ``B_def`` and ``C_def`` in the head, ``A_doc`` and ``B_doc`` in the docstring.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.pairs.making.frames import fill_slots
from attrib_batch.pairs.making.generator import Draft, Generator
from attrib_batch.pairs.making.generators.words import ADJECTIVES, ARGUMENTS, FUNCTIONS, SCENES

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.pairs.making.draws import Draws

_FRAME = '''def {function}(self, {A_def}, {B_def}, {C_def}, {D_def}):
    """{what} {thing} of the {other}

    :param {A_doc}: {about_a} {thing_a}
    :param {B_doc}: {about_b} {thing_b}
    :param'''
_ANSWER, _DOC, _DEF, _ALL = "random_answer", "random_doc", "random_def", "random_random"
_CHANGED = MappingProxyType(
    {
        _ANSWER: ("C_def",),
        _DOC: ("A_doc", "B_doc"),
        _DEF: ("A_def", "B_def", "C_def"),
        _ALL: ("A_def", "B_def", "C_def", "A_doc", "B_doc"),
    }
)


def _begin(draws: Draws, counterfactual: str, variant: str) -> Callable[[], Draft]:  # noqa: ARG001 - there is one
    def draft() -> Draft:
        a, b, c, d, *others = draws.distinct(ARGUMENTS, 9)
        words = {
            "function": draws.one(FUNCTIONS),
            "A_def": a,
            "B_def": b,
            "C_def": c,
            "D_def": d,
            "A_doc": a,
            "B_doc": b,
        }
        words |= dict(zip(("what", "about_a", "about_b"), draws.distinct(ADJECTIVES, 3), strict=True))
        words |= dict(zip(("thing", "other", "thing_a", "thing_b"), draws.distinct(SCENES, 4), strict=True))
        changed = dict(zip(_CHANGED[counterfactual], others, strict=False))
        wrong = (changed["C_def"],) if counterfactual == _ANSWER else (a, b, d)
        return Draft(
            fill_slots(_FRAME, words),
            fill_slots(_FRAME, words | changed),
            (f" {c}",),
            tuple(f" {word}" for word in wrong),
            "three_arguments",
        )

    return draft


DOCSTRING = Generator(
    name="docstring",
    explanation='the next argument that a docstring describes: "def f(self, a, b, c, d): ... :param" -> " c"',
    counterfactuals=MappingProxyType(
        {
            _ANSWER: "The argument that is asked for has another name in the head.",
            _DOC: "The arguments described before have other names in the docstring.",
            _DEF: "The first three arguments have other names in the head.",
            _ALL: "Arguments have other names in the head and, other ones again, in the docstring.",
        }
    ),
    begin=_begin,
    roles=("A_def", "B_def", "C_def", "A_doc", "B_doc"),
    paper="Heimersheim and Janiak 2023 (alignmentforum.org/posts/u6KXXmKFbXfWzoAXn)",
    mirrored=frozenset({_ANSWER}),
)
