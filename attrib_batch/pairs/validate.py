"""Check a whole table of pairs against a tokenizer, without loading a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrib_batch.pairs.advice import ADVICE
from attrib_batch.pairs.encoding.encode import PairProblem, PairWarning, encode_pairs
from attrib_batch.pairs.repair import MENDABLE, WordCollector
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attrib_batch.pairs.encoding.encode import EncodedPair, Tokenizer
    from attrib_batch.pairs.reading.reader import Pair, PairTable

_BATCH_ROWS = 2000
_SHAPES_SHOWN = 12
_MENDED_ROWS = 1000
"""Rows that an exchange of words is tried on: enough to say whether it is worth it."""

Kind = TypeVar("Kind", FailureReason, PairWarning)


@dataclass(frozen=True)
class Example:
    """A row that cannot be scored or that may be wrong, and why."""

    row: int
    pair_id: int
    message: str


@dataclass(frozen=True)
class Mending:
    """How many pairs could be made equally long by exchanging single words for others of the table."""

    n_tried: int
    """Rows of unequal length, or with an answer that is too long, at most `_MENDED_ROWS`."""
    n_mended: int
    examples: tuple[str, ...]
    """Of the first: which words would give way to which."""


@dataclass(frozen=True)
class ValidationReport:
    """What of a table can be scored with a tokenizer, and what cannot."""

    n_rows: int
    n_fine: int
    counts: Mapping[FailureReason, int]
    """Rows by reason, the most frequent first; with ``n_fine`` they add up to ``n_rows``."""
    examples: Mapping[FailureReason, tuple[Example, ...]]
    """The first rows of each reason."""
    warnings: Mapping[PairWarning, int]
    """Fine rows with something that may be wrong, by its kind; a row may have several."""
    warning_examples: Mapping[PairWarning, tuple[Example, ...]]
    """The first rows of each kind."""
    shapes: Mapping[tuple[int, int], int]
    """Fine rows by (n_tokens, first_difference): what can share a batch."""
    longer_by: Mapping[int, int]
    """Rows of unequal length by how many tokens corrupted has more than clean."""
    mending: Mending
    """What an exchange of words would mend."""

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
    vocabulary_size: int | None = None,
    allow_boundary: bool = False,
    bos_token: str | None = None,
    whole_answers: bool = False,
    against_corrupted: bool = True,
    examples: int = 3,
) -> ValidationReport:
    """Tokenise and align every pair of a table; the table is read once, in batches.

    A row whose ``pair_id`` an earlier row has already counts as a duplicate and as nothing else.

    Args:
        table: the pairs.
        tokenizer: as for :func:`~attrib_batch.pairs.encoding.encode.encode_pairs`.
        prepend_bos: as there.
        max_tokens: as there.
        vocabulary_size: as there.
        allow_boundary: as there.
        bos_token: as there.
        whole_answers: as there.
        against_corrupted: as there.
        examples: how many rows to keep for each reason and each kind of warning.

    Raises:
        DatasetError: rows that cannot be read at all, or a null ``pair_id``.
        ModelError: as ``encode_pairs`` does.
    """
    failures: _Tally[FailureReason] = _Tally(examples)
    warnings: _Tally[PairWarning] = _Tally(examples)
    shapes: Counter[tuple[int, int]] = Counter()
    longer_by: Counter[int] = Counter()
    words = WordCollector()
    unequal: list[Pair] = []
    options = {
        "prepend_bos": prepend_bos,
        "max_tokens": max_tokens,
        "vocabulary_size": vocabulary_size,
        "allow_boundary": allow_boundary,
        "bos_token": bos_token,
        "whole_answers": whole_answers,
        "against_corrupted": against_corrupted,
    }
    for row, pair, result in _results(table, tokenizer, options):
        words.add(pair)
        if isinstance(result, PairProblem):
            failures.add(result.reason, Example(row, result.pair_id, result.message))
            longer_by.update([result.longer_by] if result.longer_by else [])
            if result.reason in MENDABLE and len(unequal) < _MENDED_ROWS:
                unequal.append(pair)
            continue
        shapes[result.n_tokens, result.first_difference] += 1
        for kind, message in result.warnings:
            warnings.add(kind, Example(row, result.pair_id, message))
    return ValidationReport(
        n_rows=table.n_rows,
        n_fine=shapes.total(),
        counts=failures.counts(),
        examples=failures.examples(),
        warnings=warnings.counts(),
        warning_examples=warnings.examples(),
        shapes=dict(sorted(shapes.items())),
        longer_by=dict(sorted(longer_by.items())),
        mending=_mending(unequal, words, tokenizer, examples),
    )


def _mending(pairs: list[Pair], words: WordCollector, tokenizer: Tokenizer, n_examples: int) -> Mending:
    pool = words.pool(tokenizer)
    mended = [pair for pair in (pool.mend(pair, seed=0) for pair in pairs) if pair is not None]
    return Mending(len(pairs), len(mended), tuple(str(pair.repaired) for pair in mended[:n_examples]))


class _Tally(Generic[Kind]):
    """Numbers of rows by kind, and the first rows of each kind."""

    def __init__(self, n_kept: int) -> None:
        self._n_kept = n_kept
        self._counts: Counter[Kind] = Counter()
        self._kept: dict[Kind, list[Example]] = {}

    def add(self, kind: Kind, example: Example) -> None:
        self._counts[kind] += 1
        kept = self._kept.setdefault(kind, [])
        if len(kept) < self._n_kept:
            kept.append(example)

    def counts(self) -> dict[Kind, int]:
        """Return the counts, the largest first."""
        return dict(self._counts.most_common())

    def examples(self) -> dict[Kind, tuple[Example, ...]]:
        """Return the rows kept, in the order of the counts."""
        return {kind: tuple(self._kept[kind]) for kind in self.counts()}


def _results(
    table: PairTable, tokenizer: Tokenizer, options: Mapping[str, Any]
) -> Iterator[tuple[int, Pair, EncodedPair | PairProblem]]:
    repeated = set(table.repeated_id_rows().tolist())
    for start in range(0, table.n_rows, _BATCH_ROWS):
        pairs = table.rows(start, start + _BATCH_ROWS)
        results = encode_pairs(pairs, tokenizer, **options)
        for row, (pair, result) in enumerate(zip(pairs, results, strict=True), start):
            if row in repeated:
                message = f"an earlier row has pair_id {result.pair_id} already"
                yield row, pair, PairProblem(result.pair_id, FailureReason.DUPLICATE_ID, message)
            else:
                yield row, pair, result


def render_validation(report: ValidationReport) -> str:
    """Return the report as plain text, without a line feed at its end."""
    lines = [f"{report.n_fine:,} of {report.n_rows:,} pairs can be scored."]
    for reason, lines_of_reason in _counted(report.counts, report.examples):
        lines += lines_of_reason
        lines += _of_lengths(report) if reason is FailureReason.UNEQUAL_LENGTH else []
        lines += [f"  what to do: {ADVICE[reason]}"] if reason in ADVICE else []
    if report.mending.n_mended:
        lines += ["", *_of_mending(report.mending)]
    if report.warnings:
        lines += ["", "Warnings, about pairs that can be scored:"]
        lines += [line for _, of_kind in _counted(report.warnings, report.warning_examples) for line in of_kind]
    if report.shapes:
        lines += ["", "tokens  first difference  pairs"]
        by_count = sorted(report.shapes.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"{n_tokens:6}  {first:16}  {count:5,}" for (n_tokens, first), count in by_count[:_SHAPES_SHOWN]]
        others = by_count[_SHAPES_SHOWN:]
        if others:
            lines.append(f"and {len(others)} other shapes with {sum(n for _, n in others):,} pairs")
    return "\n".join(lines)


def _counted(
    counts: Mapping[Kind, int], examples: Mapping[Kind, tuple[Example, ...]]
) -> Iterator[tuple[Kind, list[str]]]:
    for kind, count in counts.items():
        lines: list[str] = ["", f"{kind}: {count:,}"]
        lines += [f"  row {example.row}, pair_id {example.pair_id}: {example.message}" for example in examples[kind]]
        left = count - len(examples[kind])
        yield kind, [*lines, f"  and {left:,} more"] if left else lines


def _of_lengths(report: ValidationReport) -> list[str]:
    parts = [
        f"{count:,} {'longer' if more > 0 else 'shorter'} by {abs(more)}" for more, count in report.longer_by.items()
    ]
    return [f"  corrupted prompts, in tokens: {', '.join(parts)}"]


def _of_mending(mending: Mending) -> list[str]:
    looked = "" if mending.n_tried < _MENDED_ROWS else f" of the first {_MENDED_ROWS:,}"
    first = (
        f"--repair would mend {mending.n_mended:,} of {mending.n_tried:,}{looked} pairs of unequal length or with a "
        "long answer, with words of the table:"
    )
    return [first, *(f"  {example}" for example in mending.examples)]
