"""Files of EAP-IG: the number of a subject."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.importing.options import GivenTokenizer, ImportOptions
from attrib_batch.pairs.reading.notes import TokenizerNote
from tests.pairs.importing.files_of import FILES, cells, pairs_of
from tests.support.tiny_models import tiny_tokenizer

SINGULAR, PLURAL = (" is", " was", " has", " does"), (" are", " were", " have", " do")


def test_verbs_agree_with_the_clean_subject(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "agreement.csv", tmp_path)
    assert (imported.recipe.name, imported.n_pairs) == ("agreement", 3)
    assert [(pair.answers, pair.wrong_answers) for pair in pairs] == [
        (PLURAL, SINGULAR),
        (SINGULAR, PLURAL),
        (SINGULAR, PLURAL),
    ]
    assert pairs[2].clean == "The kite, over the hills"
    assert [pair.template for pair in pairs] == ["by_the_water", "across_a_clause", "by_the_water"]
    assert {pair.task for pair in pairs} == {"subject_verb"}
    assert imported.counts.changed == {"a number turned into 4 verbs that agree and as many that do not": 3}


def test_a_row_without_a_number_is_refused(tmp_path: Path) -> None:
    source = cells(tmp_path / "p.csv", "clean,corrupted,plural", "The a,The b,1", "The b,The a,2", ",The a,0")
    _, imported = pairs_of(source, tmp_path)
    assert imported.counts.refused == {"plural is neither 0 nor 1": 1, "no text in clean": 1}


def _options(join: Path, *, loaded: bool = True) -> ImportOptions:
    note = TokenizerNote("tiny", None)
    return ImportOptions(join=join, tokenizer=GivenTokenizer(note, tiny_tokenizer() if loaded else None))


def test_a_list_of_verbs_gives_those_that_are_single_tokens(tmp_path: Path) -> None:
    """The tokenizer knows w0 to w119; w5 is singular of one verb and plural of another, and w6 has no other form."""
    verbs = cells(tmp_path / "verbs.csv", "idx,sing,plur", "_,w1,w2", "_,w3,unheard of", "_,w4,w5", "_,w5,w7", "_,w6,")
    pairs, _ = pairs_of(FILES / "agreement.csv", tmp_path, _options(verbs))
    assert (pairs[0].answers, pairs[0].wrong_answers) == ((" w2",), (" w1",))
    assert (pairs[1].answers, pairs[1].wrong_answers) == ((" w1",), (" w2",))


def test_what_is_no_list_of_verbs(tmp_path: Path) -> None:
    other = cells(tmp_path / "verbs.csv", "singular,plural", "w1,w2")
    with pytest.raises(DatasetError, match="a list of verbs has the columns sing and plur"):
        pairs_of(FILES / "agreement.csv", tmp_path, _options(other))
    long = cells(tmp_path / "long.csv", "sing,plur", "goes away,go away")
    with pytest.raises(DatasetError, match="no verb of it is one token in both of its forms"):
        pairs_of(FILES / "agreement.csv", tmp_path, _options(long))
    with pytest.raises(RequestError, match="--join with a list of verbs needs a tokenizer"):
        pairs_of(FILES / "agreement.csv", tmp_path, _options(long, loaded=False))
