"""First tokens of answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from attrib_batch.errors import RequestError
from attrib_batch.pairs.importing.options import GivenTokenizer, ImportOptions
from attrib_batch.pairs.reading.columns import AnswerKind
from attrib_batch.pairs.reading.notes import TokenizerNote
from attrib_batch.pairs.reading.reader import PairTable
from tests.pairs.importing.files_of import lines, pairs_of


def test_the_first_token_counts_where_it_is_asked_for(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    rows = [
        {"clean": "When Mary met", "corrupted": "When Jane met", "answers": " Jo and Anna", "wrong_answers": [" Anna"]},
        {"clean": "When Mary met", "corrupted": "When Jane met", "answers": "Jo", "wrong_answers": [" Anna"]},
    ]
    source = lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(RequestError, match=r"--answers first-token needs a tokenizer"):
        pairs_of(source, tmp_path, ImportOptions(answers=AnswerKind.FIRST_TOKEN))
    given = GivenTokenizer(TokenizerNote("words"), words)
    options = ImportOptions(answers=AnswerKind.FIRST_TOKEN, tokenizer=given)
    pairs, imported = pairs_of(source, tmp_path, options)
    jo, anna = words.convert_tokens_to_ids(["Jo", "Anna"])
    assert [(pair.answers, pair.wrong_answers) for pair in pairs] == [((jo,), (anna,))]
    assert imported.counts.changed["an answer cut to its first token"] == 1
    # Without its space the answer joins the prompt's last word.
    assert list(imported.counts.refused.values()) == [1]
    assert PairTable.open(tmp_path / "imported.parquet").form.notes.tokenizer == TokenizerNote("words")
