from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from attrib_batch.pairs.encoding.encode import PairWarning
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import ANSWER_COLUMNS, TableForm
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role
from attrib_batch.pairs.validate import render_validation, validate
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    path = tmp_path_factory.mktemp("pairs") / "p.parquet"
    pairs = list(generate_ioi(4500, 0))
    for row in (3, 2500, 2501, 4499):
        pairs[row] = replace(pairs[row], clean=None)
    pairs[4000] = replace(pairs[4000], answers=())
    pairs[4001] = replace(pairs[4001], pair_id=17, clean=None)
    write_pairs(path, pairs)
    return PairTable.open(path)


def test_every_row_is_counted_once(damaged: PairTable, words: PreTrainedTokenizerFast) -> None:
    report = validate(damaged, words, prepend_bos=False, examples=2)
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


def test_the_text_names_reasons_rows_and_shapes(damaged: PairTable, words: PreTrainedTokenizerFast) -> None:
    report = validate(damaged, words, prepend_bos=False, examples=1)
    text = render_validation(report)
    assert "4,494 of 4,500 pairs can be scored." in text
    assert "null_value: 4\n  row 3, pair_id 3: clean is null\n  and 3 more" in text
    assert "row 4001, pair_id 17: an earlier row has pair_id 17 already" in text
    (n_tokens, first), count = max(report.shapes.items(), key=lambda item: item[1])
    assert f"{n_tokens:6}  {first:16}  {count:5,}" in text
    assert "other shapes with" in text


def test_warnings_are_counted_beside_the_pairs_that_can_be_scored(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    good = Pair(0, "When Mary met Anna", "When Mary met Jo", (" Jane",), (" Jo",))
    hidden = replace(good, roles=(Role("a", 5, 9), Role("b", 5, 9)))
    unknown = replace(good, clean="When Zaphod met Anna")
    both = replace(unknown, roles=(Role("a", 0, 4), Role("b", 0, 4)))
    bad = replace(unknown, answers=())
    rows = [good, hidden, unknown, both, bad, unknown]
    write_pairs(tmp_path / "p.parquet", [replace(row, pair_id=i) for i, row in enumerate(rows)])
    report = validate(PairTable.open(tmp_path / "p.parquet"), words, prepend_bos=False, examples=2)
    assert report.warnings == {PairWarning.UNKNOWN_TOKEN: 3, PairWarning.ROLE_HIDDEN: 2}
    assert [e.row for e in report.warning_examples[PairWarning.UNKNOWN_TOKEN]] == [2, 3]
    assert (report.n_fine, report.counts) == (5, {FailureReason.NO_ANSWER: 1})
    text = render_validation(report)
    after = text.split("Warnings, about pairs that can be scored:")[1]
    assert "unknown_token: 3\n  row 2, pair_id 2: 1 of the 4 tokens of clean are '<unk>'" in after
    assert "  and 1 more\n" in after
    assert "role_hidden: 2\n  row 1, pair_id 1: role b: 1 of its 1 tokens count as a" in after
    assert "Warnings" not in render_validation(replace(report, warnings={}))


def test_boundaries_are_counted_unless_they_are_allowed(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    # Words are split at spaces: what follows without one joins the last word.
    joined = Pair(0, "When Mary met Anna", "When Mary met Jo", ("Jane",), ("Jo",))
    write_pairs(
        tmp_path / "p.parquet", [joined, replace(joined, pair_id=1, answers=(" Jane",), wrong_answers=(" Jo",))]
    )
    table = PairTable.open(tmp_path / "p.parquet")
    report = validate(table, words, prepend_bos=False)
    assert report.counts == {FailureReason.BOUNDARY: 1}
    assert "boundary: 1\n  row 0, pair_id 0: answers: the tokens at the end of clean" in render_validation(report)
    assert validate(table, words, prepend_bos=False, allow_boundary=True).ok


def test_ids_are_held_against_the_size_of_the_vocabulary(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    given = Pair(0, "When Mary met Anna", "When Mary met Jo", (5,), (6,))
    write_pairs(
        tmp_path / "p.parquet",
        [given, replace(given, pair_id=1, answers=(9_999,))],
        form=TableForm(id_columns=ANSWER_COLUMNS),
    )
    report = validate(PairTable.open(tmp_path / "p.parquet"), words, prepend_bos=False, vocabulary_size=len(words))
    assert report.counts == {FailureReason.OFF_VOCABULARY: 1}
