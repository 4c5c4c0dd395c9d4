"""Files of EAP-IG: token ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.importing.options import GivenTokenizer, ImportOptions
from attrib_batch.pairs.reading.notes import TokenizerNote
from attrib_batch.pairs.reading.reader import Pair, PairTable
from tests.pairs.importing.files_of import FILES, cells, pairs_of

GPT2 = GivenTokenizer(TokenizerNote("gpt2"))


def test_token_ids_are_taken_as_ids_of_a_tokenizer_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"does not say of which tokenizer: name it with --tokenizer"):
        pairs_of(FILES / "ids_ioi.csv", tmp_path)
    pairs, imported = pairs_of(FILES / "ids_ioi.csv", tmp_path, ImportOptions(tokenizer=GPT2))
    assert (imported.recipe.name, imported.n_pairs, imported.counts.read) == ("eap_ig", 12, 12)
    assert pairs[0] == Pair(
        0,
        "While Simon and Karen were waiting at the library, Simon handed the letter to",
        "While Simon and Karen were waiting at the library, Julia handed the letter to",
        (25511,),
        (15399,),
    )
    assert imported.counts.unused == ("corrupted_hard",)
    notes = PairTable.open(tmp_path / "imported.parquet").form.notes
    assert notes.tokenizer == TokenizerNote("gpt2")
    hard, _ = pairs_of(FILES / "ids_ioi.csv", tmp_path, ImportOptions(tokenizer=GPT2, counterfactual="hard"))
    assert hard[0].corrupted == "While Simon and Karen were waiting at the library, Karen handed the letter to"
    with pytest.raises(DatasetError, match=r"no column corrupted_soft; --counterfactual may be one of hard"):
        pairs_of(FILES / "ids_ioi.csv", tmp_path, ImportOptions(tokenizer=GPT2, counterfactual="soft"))


@pytest.mark.parametrize(
    ("header", "row", "right", "wrong"),
    [
        ("clean,corrupted,country_idx,corrupted_country_idx", "a,b,5,6", (5,), (6,)),
        ("clean,corrupted,clean_answer_idx,corrupted_answer_idx,label", "a,b,5,6,1", (5,), (6,)),
        (",clean,corrupted,answers_idx,corrupted_answers_idx", '0,a,b,"[5, 7]","[6]"', (5, 7), (6,)),
    ],
)
def test_token_ids_have_several_names(
    tmp_path: Path, header: str, row: str, right: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    pairs, _ = pairs_of(cells(tmp_path / "p.csv", header, row), tmp_path, ImportOptions(tokenizer=GPT2))
    assert pairs == [Pair(0, "a", "b", right, wrong)]


def test_what_is_no_token_id_is_refused_and_counted(tmp_path: Path) -> None:
    source = cells(tmp_path / "p.csv", "clean,corrupted,correct_idx,incorrect_idx", "a,b,5,6", "a,b,x,6", "a,,5,6")
    pairs, imported = pairs_of(source, tmp_path, ImportOptions(tokenizer=GPT2))
    assert [pair.pair_id for pair in pairs] == [0]
    assert imported.counts.refused == {"no list in correct_idx": 1, "no text in corrupted": 1}
    assert imported.counts.first_refused == {"no list in correct_idx": "line 3", "no text in corrupted": "line 4"}
