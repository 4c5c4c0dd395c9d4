from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from attrib_batch.pairs.ioi import generate_ioi
from attrib_batch.pairs.reader import PairTable
from attrib_batch.pairs.validate import render_validation, validate
from attrib_batch.pairs.writer import write_pairs
from attrib_batch.schema import FailureReason

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast


def damaged_table(path: Path) -> PairTable:
    pairs = list(generate_ioi(4500, 0))
    for row in (3, 2500, 2501, 4499):
        pairs[row] = replace(pairs[row], clean=None)
    pairs[4000] = replace(pairs[4000], answers=())
    pairs[4001] = replace(pairs[4001], pair_id=17, clean=None)
    write_pairs(path, pairs)
    return PairTable.open(path)


def test_every_row_is_counted_once(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    report = validate(damaged_table(tmp_path / "p.parquet"), words, prepend_bos=False, examples=2)
    assert report.counts == {
        FailureReason.NULL_VALUE: 4,
        FailureReason.NO_ANSWER: 1,
        FailureReason.DUPLICATE_ID: 1,
    }
    assert (report.n_rows, report.n_fine, report.ok) == (4500, 4494, False)
    assert sum(report.shapes.values()) == 4494
    assert [(e.row, e.pair_id) for e in report.examples[FailureReason.NULL_VALUE]] == [(3, 3), (2500, 2500)]
    assert [(e.row, e.pair_id) for e in report.examples[FailureReason.DUPLICATE_ID]] == [(4001, 17)]


def test_shapes_and_lengths_count_the_bos(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    write_pairs(tmp_path / "p.parquet", generate_ioi(1000, 0))
    table = PairTable.open(tmp_path / "p.parquet")
    plain, with_bos = (validate(table, words, prepend_bos=bos) for bos in (False, True))
    assert {(n + 1, d + 1): count for (n, d), count in plain.shapes.items()} == with_bos.shapes
    assert plain.ok
    longest = max(n for n, _ in plain.shapes)
    short = validate(table, words, prepend_bos=False, max_tokens=longest - 1)
    assert short.counts[FailureReason.TOO_LONG] == sum(n for (t, _), n in plain.shapes.items() if t == longest)


def test_the_text_names_reasons_rows_and_shapes(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    report = validate(damaged_table(tmp_path / "p.parquet"), words, prepend_bos=False, examples=1)
    text = render_validation(report)
    assert "4,494 of 4,500 pairs can be scored." in text
    assert "null_value: 4\n  row 3, pair_id 3: clean is null\n  and 3 more" in text
    assert "row 4001, pair_id 17: an earlier row has pair_id 17 already" in text
    (n_tokens, first), count = max(report.shapes.items(), key=lambda item: item[1])
    assert f"{n_tokens:6}  {first:16}  {count:5,}" in text
    assert "other shapes with" in text
