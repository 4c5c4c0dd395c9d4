"""MIB's files: a prompt with its choices, and several counterfactuals of the same shape, of which one is chosen.

The answer is the choice that ``answerKey`` names: of choices with labels (multiple choice questions) its label, of
others the choice itself; without choices it is ``label`` (arithmetic). Wrong is what answers the counterfactual; where
that has no answer of its own, every other choice is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.counts import RowRefusedError
from attrib_batch.pairs.importing.options import LeadingSpace
from attrib_batch.pairs.importing.values import required_text, spaced
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.importing.recipe import Look, Reading
    from attrib_batch.pairs.importing.sources import Row

_SUFFIX = "_counterfactual"


def recognise(look: Look) -> bool:
    """Return whether there is a prompt, what answers it, and a counterfactual."""
    answered = look.has("choices", "answerKey") or look.has("label")
    return look.has("prompt") and answered and bool(_counterfactuals(look.first))


def _counterfactuals(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the counterfactuals of a row."""
    return [name.removesuffix(_SUFFIX) for name in row if name.endswith(_SUFFIX)]


def read(reading: Reading) -> Iterator[Pair]:
    """Yield the pairs; the counterfactual's name becomes their template."""
    space = reading.options.leading_space or LeadingSpace.ADD
    chosen: str | None = None

    def convert(row: Row) -> Pair:
        nonlocal chosen
        if chosen is None:
            chosen = _choose(reading, row)
            reading.counts.use(row.values, {"prompt", "choices", "answerKey", "label", chosen + _SUFFIX})
        other = row.values.get(chosen + _SUFFIX)
        if not isinstance(other, dict) or not other.get("prompt"):
            raise RowRefusedError(f"no {chosen}{_SUFFIX}")
        right = _answer(row.values)
        if right is None:
            raise RowRefusedError("answerKey names none of the choices")
        wrong = [answer for answer in [_answer(other)] if answer not in {None, right}]
        wrong = wrong or [choice for choice in _choices(row.values) if choice != right]
        if not wrong:
            raise RowRefusedError("the counterfactual has the same answer, and there is no other choice")
        return Pair(
            row.number,
            required_text(row.values, "prompt"),
            required_text(other, "prompt"),
            spaced([right], "choices", space, reading.counts),
            spaced(wrong, "choices", space, reading.counts),
            template=chosen,
        )

    yield from reading.each(convert)


def _choose(reading: Reading, row: Row) -> str:
    names = _counterfactuals(row.values)
    asked = reading.options.counterfactual
    if asked is not None and asked.removesuffix(_SUFFIX) in names:
        return asked.removesuffix(_SUFFIX)
    if asked is None and len(names) == 1:
        return names[0]
    reason = "there are several counterfactuals" if asked is None else f"there is no counterfactual {asked!r}"
    raise DatasetError(f"{reading.source.path}: {reason}. Choose one with --counterfactual: {', '.join(names)}.")


def _choices(row: Mapping[str, Any]) -> list[str]:
    choices = row.get("choices")
    if isinstance(choices, dict):  # texts with their labels
        choices = choices.get("label")
    return [str(choice) for choice in choices] if isinstance(choices, list) else []


def _answer(row: Mapping[str, Any]) -> str | None:
    choices, key = _choices(row), row.get("answerKey")
    if choices:
        return choices[key] if isinstance(key, int) and 0 <= key < len(choices) else None
    label = row.get("label")
    return None if label is None else str(label)
