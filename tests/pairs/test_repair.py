from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.importing.importer import import_pairs
from attrib_batch.pairs.importing.options import GivenTokenizer, ImportOptions
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.notes import TokenizerNote
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role
from attrib_batch.pairs.repair import WordPool, repaired
from attrib_batch.pairs.validate import render_validation, validate
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN = "<unk>"
NAMES = ["Mary", "John", "Anna", "Barto", "##lo", "##mew"]
PIECES = [UNKNOWN, "When", "and", "met", ",", "gave", "it", "to", "the", *NAMES]


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """Bartolo is two tokens, Bartolomew three, and every other name one."""
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(PIECES)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)


def ioi(pair_id: int, io: str, subject: str) -> Pair:
    start = f"When {io} and {subject} met, "
    return Pair(
        pair_id,
        f"{start}{subject} gave it to",
        f"{start}{io} gave it to",
        (f" {io}",),
        (f" {subject}",),
        (
            Role("IO", 5, 5 + len(io)),
            Role("S2", len(start), len(start) + len(subject)),
            Role("end", len(start) + len(subject) + 9, len(start) + len(subject) + 11),
        ),
    )


LONG, FINE = ioi(0, "Mary", "Bartolo"), ioi(1, "John", "Anna")


def test_a_long_name_gives_way_to_one_of_the_table_everywhere(pieces: PreTrainedTokenizerFast) -> None:
    pool = WordPool.of([LONG, FINE], pieces)
    mended = pool.mend(LONG, 0)
    assert mended is not None
    # Mary stands in the pair already, so John and Anna are left.
    new = {"Bartolo -> John": "John", "Bartolo -> Anna": "Anna"}[str(mended.repaired)]
    assert replace(mended, repaired=None) == ioi(0, "Mary", new)
    assert pool.mend(LONG, 0) == mended
    others = {pool.mend(replace(LONG, pair_id=n), seed) for n in range(8) for seed in range(2)}
    assert {str(pair and pair.repaired) for pair in others} == {"Bartolo -> John", "Bartolo -> Anna"}


def test_a_name_may_be_longer_on_one_side_alone(pieces: PreTrainedTokenizerFast) -> None:
    pair = Pair(0, "When Bartolo met the", "When Bartolomew met the", (" to",), (" it",))
    assert WordPool.of([pair], pieces).mend(pair, 0) is None
    pool = WordPool.of([pair, FINE, ioi(2, "Bartolo", "Mary")], pieces)
    # No other word of two tokens: the pair stays as it is.
    assert pool.mend(pair, 0) is None
    pair = Pair(0, "When Mary met the", "When Bartolomew met the", (" to",), (" it",))
    mended = pool.mend(pair, 0)
    assert mended is not None
    assert mended.clean == pair.clean
    assert mended.corrupted in {"When John met the", "When Anna met the"}


def test_what_cannot_be_mended_stays_as_it_is(pieces: PreTrainedTokenizerFast) -> None:
    lower = Pair(0, "When the met Anna", "When gave it met Anna", (" to",), (" it",))
    by_token = replace(LONG, roles=(Role("IO", 1, 2, by_token=True),))
    inside = replace(LONG, roles=(Role("half", 14, 17),))
    fine = FINE
    pairs = [lower, by_token, inside, fine, LONG]
    pool = WordPool.of(pairs, pieces)
    results = list(repaired(pairs, pool, pieces, 0))
    assert results[:4] == [(lower, True), (by_token, True), (inside, True), (fine, False)]
    mended, is_left = results[4]
    assert (mended.repaired is not None, is_left) == (True, False)
    assert isinstance(encode_pairs([mended], pieces, prepend_bos=False)[0], EncodedPair)


def test_an_import_repairs_and_says_so_in_a_column(tmp_path: Path, pieces: PreTrainedTokenizerFast) -> None:
    source, target = tmp_path / "source.parquet", tmp_path / "target.parquet"
    stubborn = Pair(2, "When the met", "When it gave met", (" to",), (" it",))
    write_pairs(source, [LONG, FINE, stubborn])
    options = ImportOptions(repair=True, tokenizer=GivenTokenizer(TokenizerNote("pieces"), pieces), seed=3)
    imported = import_pairs(source, target, options)
    assert imported.n_pairs == 3
    assert list(imported.counts.changed.values()) == [1]
    assert list(imported.counts.left.values()) == [1]
    column = pq.read_table(target).column("repaired").to_pylist()
    assert [value is None for value in column] == [False, True, True]
    pairs = PairTable.open(target).rows(0, 3)
    assert pairs[1:] == [FINE, stubborn]
    before = target.read_bytes()
    import_pairs(source, target, options)
    assert target.read_bytes() == before
    import_pairs(source, target)
    assert "repaired" not in pq.read_table(target).column_names


def test_validation_says_how_unequal_prompts_are_and_what_to_do(
    tmp_path: Path, pieces: PreTrainedTokenizerFast
) -> None:
    unequal = Pair(0, "When Bartolo met the", "When Mary met the", (" to",), (" it",))
    longer = Pair(1, "When Mary met the", "When Bartolomew met the", (" to",), (" it",))
    rows = [unequal, longer, FINE, ioi(3, "Mary", "Bartolo"), replace(longer, pair_id=4)]
    write_pairs(tmp_path / "p.parquet", [replace(row, pair_id=n) for n, row in enumerate(rows)])
    report = validate(PairTable.open(tmp_path / "p.parquet"), pieces, prepend_bos=False)
    assert report.counts == {FailureReason.UNEQUAL_LENGTH: 3, FailureReason.MULTI_TOKEN_ANSWER: 1}
    assert report.longer_by == {-1: 1, 2: 2}
    assert (report.mending.n_tried, report.mending.n_mended) == (4, 4)
    text = render_validation(report)
    assert "  corrupted prompts, in tokens: 1 shorter by 1, 2 longer by 2\n  what to do: Choose words" in text
    assert "--repair would mend 4 of 4 pairs of unequal length or with a long answer, with words of the table:" in text
    assert f"  {report.mending.examples[0]}\n" in text
    assert report.mending.examples[0].startswith("Bartolo -> ")
