"""Files of BLiMP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attrib_batch.errors import RequestError
from attrib_batch.pairs.importing.options import Corrupt, ImportOptions
from attrib_batch.pairs.importing.recipes import blimp
from tests.pairs.importing.files_of import FILES, lines, pairs_of

SHUFFLE = ImportOptions(corrupt=Corrupt.SHUFFLE)


def test_a_minimal_pair_gets_the_prefix_of_another_row(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--corrupt shuffle"):
        pairs_of(FILES / "minimal_pairs.jsonl", tmp_path)
    pairs, imported = pairs_of(FILES / "minimal_pairs.jsonl", tmp_path, SHUFFLE)
    assert imported.recipe.name == "blimp"
    # All prefixes have four words; partners ask for the other pronoun.
    by_answer = {pair.clean: pair.answers for pair in pairs}
    assert [(pair.pair_id, pair.answers, pair.wrong_answers) for pair in pairs] == [
        (0, (" herself",), (" himself",)),
        (1, (" himself",), (" herself",)),
        (2, (" himself",), (" herself",)),
        (3, (" herself",), (" himself",)),
    ]
    assert all(by_answer[pair.corrupted] == pair.wrong_answers for pair in pairs)
    assert {pair.template for pair in pairs} == {"reflexive_gender"}
    assert imported.counts.notes
    again, _ = pairs_of(FILES / "minimal_pairs.jsonl", tmp_path, SHUFFLE)
    assert again == pairs
    rows = [
        {"one_prefix_prefix": text, "one_prefix_word_good": good, "one_prefix_word_bad": bad}
        for text, good, bad in (("a b", "x", "y"), ("a c", "x", "y"), ("a b c", "x", "y"), ("a b", "x", "y"))
    ]
    pairs, imported = pairs_of(lines(tmp_path / "p.jsonl", rows), tmp_path, SHUFFLE)
    assert [(pair.pair_id, pair.clean, pair.corrupted) for pair in pairs] == [
        (0, "a b", "a c"),
        (1, "a c", "a b"),
        (3, "a b", "a c"),
    ]
    assert imported.counts.refused == {"no other prefix of the same length": 1}
    assert imported.counts.changed[blimp.SAME_ANSWER] == 3


def test_seeds_draw_other_partners_and_a_window_bounds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"one_prefix_prefix": f"w{n} z", "one_prefix_word_good": "ab"[n % 2], "one_prefix_word_bad": "ba"[n % 2]}
        for n in range(40)
    ]
    source = lines(tmp_path / "p.jsonl", rows)
    drawn = [pairs_of(source, tmp_path, replace(SHUFFLE, seed=seed))[0] for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    monkeypatch.setattr("attrib_batch.pairs.importing.recipes.blimp.WINDOW_ROWS", 10)
    pairs, _ = pairs_of(source, tmp_path, SHUFFLE)
    assert [pair.pair_id for pair in pairs] == list(range(40))
    for pair in pairs:
        assert pair.corrupted is not None
        partner = int(pair.corrupted.split()[0][1:])
        assert partner // 10 == pair.pair_id // 10
        assert partner % 2 != pair.pair_id % 2
