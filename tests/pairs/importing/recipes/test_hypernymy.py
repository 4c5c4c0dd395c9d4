"""Files of EAP-IG: lists in cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.options import ImportOptions, LeadingSpace
from attrib_batch.pairs.reading.reader import Pair
from tests.pairs.importing.files_of import FILES, cells, pairs_of


def test_lists_in_cells_get_the_space_before_a_word(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "list_cells_bom.csv", tmp_path)
    assert imported.recipe.name == "hypernymy"
    assert pairs == [
        Pair(0, ", tulips and other", ", hammers and other", (" flowers", " plants"), (" tools",)),
        Pair(1, ", trout and other", ", violins and other", (" fish",), (" instruments", " musical")),
        Pair(2, ", sedans and other", ", oaks and other", (" cars", " vehicles"), (" trees",)),
    ]
    assert list(imported.counts.changed.values()) == [9]
    keep = ImportOptions(leading_space=LeadingSpace.KEEP)
    pairs, imported = pairs_of(FILES / "list_cells_bom.csv", tmp_path, keep)
    assert (pairs[1].answers, sum(imported.counts.changed.values())) == (("fish",), 0)
    marker = tmp_path / "executed"
    evil = f"\"__import__('pathlib').Path('{marker}').touch() or ['a']\""
    source = cells(tmp_path / "p.csv", "clean,corrupted,answers,corrupted_answers", f"a,b,{evil},['c']", "a,b,['d'],[]")
    with pytest.raises(DatasetError, match=r"no row became a pair \(1 rows: no list in answers; 1 rows: an empty list"):
        pairs_of(source, tmp_path)
    assert not marker.exists()
