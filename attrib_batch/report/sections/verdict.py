"""What a page says in sentences about how far a method's scores agree with activation patching."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from attrib_batch.report.formats import plain
from attrib_batch.spec.registries.methods import find_method_entry

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Value:
    """A statistic and the ends of its 95% interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


_UNDEFINED = Value(None, None, None)

Agreement = dict[str, Value]
"""The statistics of one component by name, as in ``agreement.parquet``."""


class Grade(StrEnum):
    """How closely estimates follow exact scores, by Pearson's correlation."""

    CLOSELY = "closely"
    EXCEPTIONS = "exceptions"
    NOT = "not"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, pearson: float | None) -> Grade:
        """Grade a correlation."""
        if pearson is None:
            return cls.UNKNOWN
        return cls.CLOSELY if pearson >= 0.95 else cls.EXCEPTIONS if pearson >= 0.8 else cls.NOT


@dataclass(frozen=True)
class Verdict:
    """Whether to trust the scores of one component."""

    grade: Grade
    headline: str
    detail: str


_ADVICE = "use exact"
"""For a kind that is not known here."""

_FOLLOW = {
    Grade.CLOSELY: "follow activation patching closely",
    Grade.EXCEPTIONS: "follow activation patching, with exceptions",
    Grade.NOT: "do not follow activation patching",
}


def judge(agreement: Agreement, method: Mapping[str, Any], at: str) -> Verdict:
    """Judge one component by its figures.

    Args:
        agreement: its statistics.
        method: the job's method.
        at: the positions of scope ``end``, as a phrase.
    """
    end, everywhere = (agreement.get(f"pearson@{scope}", _UNDEFINED) for scope in ("end", "all"))
    grade = Grade.of(end.value)
    if grade is Grade.UNKNOWN:
        return Verdict(grade, f"At {at} nothing can be said: the scores hardly vary.", _about_all(grade, everywhere))
    entry = find_method_entry(str(method.get("kind")))
    advice = {
        Grade.CLOSELY: "",
        Grade.EXCEPTIONS: ": look at the points far from the line before relying on a single score",
        Grade.NOT: f": {entry.advice if entry else _ADVICE}",
    }[grade]
    means = agreement.get("map_pearson@end", _UNDEFINED)
    details = [
        f"Pearson is {with_interval(end)} over single scores at {at}"
        + (f", and {with_interval(means)} over their means." if means.value is not None else "."),
        _doubt(grade, end),
        _size(agreement.get("slope@end", _UNDEFINED), grade),
        _about_all(grade, everywhere),
    ]
    return Verdict(grade, f"At {at} the estimates {_FOLLOW[grade]}{advice}.", " ".join(filter(None, details)))


def with_interval(value: Value, digits: int = 3) -> str:
    """Write a value with its interval, such as ``0.972 (0.961 to 0.980)``."""
    if value.low is None or value.high is None:
        return plain(value.value, digits)
    return f"{plain(value.value, digits)} ({plain(value.low, digits)} to {plain(value.high, digits)})"


def _doubt(grade: Grade, pearson: Value) -> str:
    if pearson.low is None:
        return "There is no interval: the verified pairs are one sampling unit."
    if Grade.of(pearson.low) is not grade:
        return "The interval reaches into a lower grade: verify more pairs to be sure."
    return ""


def _size(slope: Value, grade: Grade) -> str:
    """Say that estimates are all too small or too large, which Pearson's correlation does not see."""
    if slope.value is None or grade is Grade.NOT or 0.8 <= slope.value <= 1.25:
        return ""
    wrong = "small" if slope.value < 1 else "large"
    return f"Their size is off: they are too {wrong}, {with_interval(slope)} times the exact effect by least squares."


def _about_all(grade: Grade, pearson: Value) -> str:
    overall = Grade.of(pearson.value)
    if overall is Grade.UNKNOWN:
        return ""
    if overall is grade:
        return f"Over all positions it is {with_interval(pearson)}."
    return f"Over all positions the estimates {_FOLLOW[overall]}: Pearson is {with_interval(pearson)}."
