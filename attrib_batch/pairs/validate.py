"""Check a whole table of pairs against a tokenizer, before a model is paid for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.pairs.encode import PairProblem, encode_pairs
from attrib_batch.schema import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.encode import EncodedPair, Tokenizer
    from attrib_batch.pairs.reader import PairTable

_BATCH_ROWS = 2000
_SHAPES_SHOWN = 12


@dataclass(frozen=True)
class Example:
    """A row that cannot be scored, and why."""

    row: int
    pair_id: int
    message: str


@dataclass(frozen=True)
class ValidationReport:
    """What of a table can be scored with a tokenizer, and what cannot."""

    n_rows: int
    n_fine: int
    counts: Mapping[FailureReason, int]
    """Rows by reason, the most frequent first; with ``n_fine`` they add up to ``n_rows``."""
    examples: Mapping[FailureReason, tuple[Example, ...]]
    """The first rows of each reason."""
    shapes: Mapping[tuple[int, int], int]
    """Fine rows by (n_tokens, first_difference): what can share a batch."""

    @property
    def ok(self) -> bool:
        """Whether every row can be scored."""
        return self.n_fine == self.n_rows


def validate(
    table: PairTable,
    tokenizer: Tokenizer,
    *,
    prepend_bos: bool,
    max_tokens: int | None = None,
    examples: int = 3,
) -> ValidationReport:
    """Tokenise and align every pair of a table; the table is read once, in batches.

    A row whose ``pair_id`` an earlier row has already counts as a duplicate and as nothing else.

    Args:
        table: the pairs.
        tokenizer: as for :func:`~attrib_batch.pairs.encode.encode_pairs`.
        prepend_bos: put the tokenizer's BOS token before both prompts.
        max_tokens: the longest prompt the model takes, a prepended BOS counted.
        examples: how many rows to keep for each reason.

    Raises:
        DatasetError: rows that cannot be read at all, or a null ``pair_id``.
        ModelError: ``prepend_bos`` is set and the tokenizer has no BOS token.
    """
    counts: Counter[FailureReason] = Counter()
    shapes: Counter[tuple[int, int]] = Counter()
    kept: dict[FailureReason, list[Example]] = {}
    for row, result in _results(table, tokenizer, prepend_bos=prepend_bos, max_tokens=max_tokens):
        if not isinstance(result, PairProblem):
            shapes[result.n_tokens, result.first_difference] += 1
            continue
        counts[result.reason] += 1
        rows = kept.setdefault(result.reason, [])
        if len(rows) < examples:
            rows.append(Example(row, result.pair_id, result.message))
    return ValidationReport(
        n_rows=table.n_rows,
        n_fine=shapes.total(),
        counts=dict(counts.most_common()),
        examples={reason: tuple(kept[reason]) for reason, _ in counts.most_common()},
        shapes=dict(sorted(shapes.items())),
    )


def _results(
    table: PairTable, tokenizer: Tokenizer, *, prepend_bos: bool, max_tokens: int | None
) -> Iterator[tuple[int, EncodedPair | PairProblem]]:
    repeated = set(table.repeated_id_rows().tolist())
    for start in range(0, table.n_rows, _BATCH_ROWS):
        pairs = table.rows(start, start + _BATCH_ROWS)
        results = encode_pairs(pairs, tokenizer, prepend_bos=prepend_bos, max_tokens=max_tokens)
        for row, result in enumerate(results, start):
            if row in repeated:
                message = f"an earlier row has pair_id {result.pair_id} already"
                yield row, PairProblem(result.pair_id, FailureReason.DUPLICATE_ID, message)
            else:
                yield row, result


def render_validation(report: ValidationReport) -> str:
    """The report as plain text, without a line feed at its end."""
    lines = [f"{report.n_fine:,} of {report.n_rows:,} pairs can be scored."]
    for reason, count in report.counts.items():
        lines += ["", f"{reason}: {count:,}"]
        lines += [
            f"  row {example.row}, pair_id {example.pair_id}: {example.message}" for example in report.examples[reason]
        ]
        left = count - len(report.examples[reason])
        if left:
            lines.append(f"  and {left:,} more")
    if report.shapes:
        lines += ["", "tokens  first difference  pairs"]
        by_count = sorted(report.shapes.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"{n_tokens:6}  {first:16}  {count:5,}" for (n_tokens, first), count in by_count[:_SHAPES_SHOWN]]
        others = by_count[_SHAPES_SHOWN:]
        if others:
            lines.append(f"and {len(others)} other shapes with {sum(n for _, n in others):,} pairs")
    return "\n".join(lines)
