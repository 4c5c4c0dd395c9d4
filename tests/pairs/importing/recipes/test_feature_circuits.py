"""Files of sparse feature circuits."""

from __future__ import annotations

from pathlib import Path

from attrib_batch.pairs.reading.reader import Pair
from tests.pairs.importing.files_of import FILES, pairs_of


def test_prefixes_with_their_patches_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    pairs, imported = pairs_of(FILES / "lines_named.json", tmp_path)
    assert imported.recipe.name == "feature_circuits"
    assert pairs[1] == Pair(1, "The pilot", "The pilots", (" is",), (" are",), template="singular")
    assert len(pairs) == 4
    assert (imported.counts.repeated, imported.counts.first_repeated) == (1, "line 4")
