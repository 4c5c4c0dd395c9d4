"""What a generator is, and how its drafts become the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.making.draws import Draws
from attrib_batch.pairs.reading.reader import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from attrib_batch.pairs.making.frames import Filled


@dataclass(frozen=True)
class Draft:
    """A pair before it has a number."""

    clean: Filled
    corrupted: Filled
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    """Where there are mirrors: what is right after the corrupted prompt."""
    template: str


@dataclass(frozen=True)
class Generator:
    """A task, with the wordings that pairs of it are made from."""

    name: str
    """What ``pairs make`` calls it, and what stands in the column ``task``."""
    explanation: str
    """What a prompt asks for, in a sentence with an example."""
    counterfactuals: Mapping[str, str]
    """What the corrupted prompt changes, by the field's own name, with a sentence each; the first by default."""
    begin: Callable[[Draws, str, str], Callable[[], Draft]]
    """(draws, counterfactual, variant) -> a function that drafts one pair after the other."""
    roles: tuple[str, ...]
    """The roles that prompts may have beside the end, in order."""
    paper: str
    """Where the task is from."""
    mirrored: frozenset[str] = frozenset()
    """The counterfactuals whose corrupted prompt has the wrong answer as its right one, so that there are mirrors."""
    variants: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"": ""}))
    """Kinds of wordings to choose from, with a sentence each; the first by default."""
    variant_option: str = ""
    """What the command line calls that choice."""


def generate(
    generator: Generator,
    count: int,
    seed: int,
    counterfactual: str | None = None,
    variant: str | None = None,
    *,
    mirror: bool | None = None,
) -> Iterator[Pair]:
    """Generate ``count`` pairs, one at a time; the same arguments give the same rows on every platform.

    Args:
        generator: the task.
        count: number of rows, mirrors included; where it is odd the last pair has no mirror.
        seed: any integer. Without mirrors the rows are those that a table with mirrors has at even places.
        counterfactual: what the corrupted prompts change.
        variant: which kind of wordings.
        mirror: follow every pair by its mirror, in which clean and corrupted change places, in the same ``group``; by
            default where the counterfactual allows it.

    Raises:
        DatasetError: at once, for a count below 1, an unknown name, or mirrors that there are none of.
    """
    counterfactual = next(iter(generator.counterfactuals)) if counterfactual is None else counterfactual
    variant = next(iter(generator.variants)) if variant is None else variant
    if count < 1:
        raise DatasetError(f"count must be at least 1, not {count}")
    for what, name, known in (
        ("counterfactual", counterfactual, generator.counterfactuals),
        (generator.variant_option or "variant", variant, generator.variants),
    ):
        if name not in known:
            raise DatasetError(f"{generator.name}: unknown {what} {name!r}: choose one of {', '.join(known)}")
    has_mirrors = counterfactual in generator.mirrored
    if mirror and not has_mirrors:
        raise DatasetError(
            f"{generator.name}: the corrupted prompt of {counterfactual} has no right answer of its own, so pairs have "
            f"no mirror; {', '.join(sorted(generator.mirrored)) or 'no counterfactual'} has"
        )
    drafts = generator.begin(Draws(seed), counterfactual, variant)
    return _rows(generator, drafts, count, mirror=has_mirrors if mirror is None else mirror)


def _rows(generator: Generator, draft: Callable[[], Draft], count: int, *, mirror: bool) -> Iterator[Pair]:
    step = 2 if mirror else 1
    for pair_id in range(0, count, step):
        drawn = draft()
        group = pair_id // 2 if mirror else None
        sides = [(drawn.clean, drawn.corrupted, drawn.answers, drawn.wrong_answers)]
        if mirror and pair_id + 1 < count:
            sides.append((drawn.corrupted, drawn.clean, drawn.wrong_answers, drawn.answers))
        for number, (clean, corrupted, right, wrong) in enumerate(sides):
            yield Pair(
                pair_id=pair_id + number,
                clean=clean.text,
                corrupted=corrupted.text,
                answers=right,
                wrong_answers=wrong,
                roles=clean.roles(generator.roles),
                task=generator.name,
                template=drawn.template,
                group=group,
            )
