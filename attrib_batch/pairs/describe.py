"""Describe a table of pairs by counts that need no tokenizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.pairs.reading.reader import PairTable

_BATCH_ROWS = 4096
_VALUES_SHOWN = 40


@dataclass(frozen=True)
class TableDescription:
    """Counts over a table of pairs; None stands for a null."""

    n_rows: int
    n_groups: int
    """Distinct non-null values of ``group``."""
    n_ungrouped: int
    """Rows whose ``group`` is null: each is a sampling unit of its own."""
    tasks: Mapping[str | None, int]
    templates: Mapping[str | None, int]
    words: Mapping[int, int]
    """Clean prompts by number of words."""
    characters: Mapping[int, int]
    """Clean prompts by number of characters."""
    roles: Mapping[str, int]
    """Rows by the roles they name."""


def describe(table: PairTable) -> TableDescription:
    """Count what a table holds; read once, in batches. Rows whose clean prompt is null have no length.

    Raises:
        DatasetError: rows that cannot be read, or a null ``pair_id``.
    """
    tasks: Counter[str | None] = Counter()
    templates: Counter[str | None] = Counter()
    words: Counter[int] = Counter()
    characters: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    groups: set[int] = set()
    n_ungrouped = 0
    for pairs in table.batches(_BATCH_ROWS):
        tasks.update(pair.task for pair in pairs)
        templates.update(pair.template for pair in pairs)
        words.update(len(pair.clean.split()) for pair in pairs if pair.clean is not None)
        characters.update(len(pair.clean) for pair in pairs if pair.clean is not None)
        roles.update(name for pair in pairs for name in dict.fromkeys(role.name for role in pair.roles))
        groups.update(pair.group for pair in pairs if pair.group is not None)
        n_ungrouped += sum(pair.group is None for pair in pairs)
    return TableDescription(
        n_rows=table.n_rows,
        n_groups=len(groups),
        n_ungrouped=n_ungrouped,
        tasks=dict(tasks.most_common()),
        templates=dict(sorted(templates.items(), key=lambda item: (item[0] is None, item[0] or ""))),
        words=dict(sorted(words.items())),
        characters=dict(sorted(characters.items())),
        roles=dict(roles.most_common()),
    )


def render_description(description: TableDescription) -> str:
    """Return the description as plain text, without a line feed at its end."""
    n_groups, n_ungrouped = description.n_groups, description.n_ungrouped
    units = f"{n_groups + n_ungrouped:,} sampling units"
    lines = [
        f"{description.n_rows:,} pairs in {units} ({n_groups:,} groups, {n_ungrouped:,} pairs without one)",
        f"clean prompts: {_range(description.words)} words, {_range(description.characters)} characters",
    ]
    for title, counts in (
        ("task", description.tasks),
        ("template", description.templates),
        ("role", description.roles),
    ):
        lines += ["", title]
        lines += [
            f"  {'(none)' if name is None else name:<24} {count:>9,}"
            for name, count in list(counts.items())[:_VALUES_SHOWN]
        ]
        if len(counts) > _VALUES_SHOWN:
            lines.append(f"  and {len(counts) - _VALUES_SHOWN:,} others")
    return "\n".join(lines)


def _range(histogram: Mapping[int, int]) -> str:
    """Format the smallest, largest and median value of a sorted histogram."""
    if not histogram:
        return "no"
    half, seen, median = sum(histogram.values()) / 2, 0, 0
    for median, count in histogram.items():  # noqa: B007 - the last one reached is the median
        seen += count
        if seen >= half:
            break
    return f"{min(histogram)} to {max(histogram)} (median {median})"
