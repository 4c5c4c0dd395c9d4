"""Files of EAP-IG: years."""

from __future__ import annotations

from pathlib import Path

from tests.pairs.importing.files_of import FILES, cells, pairs_of


def test_a_year_is_right_where_it_is_larger(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "year_label.csv", tmp_path)
    assert (imported.recipe.name, imported.n_pairs) == ("greater_than", 12)
    assert pairs[0].clean == "The siege went on from the year 1141 to the year 11"
    assert pairs[0].corrupted == "The siege went on from the year 1101 to the year 11"
    assert pairs[2].answers == ("96", "97", "98", "99")
    assert pairs[2].wrong_answers is not None
    assert (len(pairs[2].wrong_answers), pairs[2].wrong_answers[:2], pairs[2].wrong_answers[-1]) == (
        96,
        ("00", "01"),
        "95",
    )
    source = cells(
        tmp_path / "p.csv",
        "clean,corrupted,label",
        "from 1705 to 17,from 1701 to 17,5",
        "from 1799 to 17,from 1701 to 17,99",
        "from 1742 to 17,from 1701 to 17,43",
        "from 1742 to 17,from 1701 to 17,x",
    )
    pairs, imported = pairs_of(source, tmp_path)
    assert [(pair.pair_id, pair.answers and pair.answers[0]) for pair in pairs] == [(0, "06")]
    assert imported.counts.refused == {
        "label is 99, and no larger ending exists": 1,
        "label is not the ending of a year in clean": 1,
        "label is no number of two digits": 1,
    }
