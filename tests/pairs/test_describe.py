from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from attrib_batch.pairs.describe import describe, render_description
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.reader import PairTable

if TYPE_CHECKING:
    from pathlib import Path


def test_counts_over_several_batches(tmp_path: Path) -> None:
    pairs = list(generate_ioi(5000, 0))
    pairs[4998] = replace(pairs[4998], clean=None, group=None, roles=(), template=None)
    write_pairs(tmp_path / "p.parquet", pairs)
    found = describe(PairTable.open(tmp_path / "p.parquet"))
    assert (found.n_rows, found.n_groups, found.n_ungrouped) == (5000, 2500, 1)
    assert found.tasks == {"ioi": 5000}
    assert found.templates == Counter(pair.template for pair in pairs)
    assert found.words == Counter(len(pair.clean.split()) for pair in pairs if pair.clean)
    assert found.characters == Counter(len(pair.clean) for pair in pairs if pair.clean)
    assert found.roles == dict.fromkeys(("IO", "S1", "S1+1", "S2", "end"), 4999)


def test_the_text(tmp_path: Path) -> None:
    pairs = [replace(pair, task=None, template=f"t{pair.pair_id}") for pair in generate_ioi(60, 0, mirror=False)]
    write_pairs(tmp_path / "p.parquet", [replace(p, clean="x " * (2 if p.pair_id else 7)) for p in pairs])
    text = render_description(describe(PairTable.open(tmp_path / "p.parquet")))
    assert "60 pairs in 60 sampling units (0 groups, 60 pairs without one)" in text
    assert "2 to 7 (median 2) words, 4 to 14 (median 4) characters" in text
    assert "(none)" in text
    assert "and 20 others" in text
