"""Files of PEAP."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError, RequestError
from attrib_batch.pairs.importing.options import ImportOptions, Positions
from attrib_batch.pairs.reading.reader import Pair, Role
from tests.pairs.importing.files_of import FILES, cells, pairs_of


def test_two_files_are_joined_and_their_spans_are_tokens(tmp_path: Path) -> None:
    join = ImportOptions(join=FILES / "joined_counter.csv")
    with pytest.raises(RequestError, match="name the file of the counterfactual prompts with --join"):
        pairs_of(FILES / "joined_clean.csv", tmp_path)
    pairs, imported = pairs_of(FILES / "joined_clean.csv", tmp_path, join)
    assert imported.recipe.name == "peap"
    assert pairs == [
        Pair(
            0,
            "Julia and Simon left early because Simon was tired. Julia",
            "Julia and Simon left early because Karen was tired. Julia",
            (" Simon",),
            (" Julia",),
            # Counted with a BOS, the first name is token 1.
            (Role("first_name", 0, 1, by_token=True),),
        )
    ]


JOINED = "prompt_id,prompt,correct_token,wrong_token,name_start,name_end"


def test_files_are_joined_by_id_in_any_order_and_by_row_without(tmp_path: Path) -> None:
    clean = cells(tmp_path / "a.csv", JOINED, "1,a,x,y,1,2", "2,b,x,y,0,1", "3,c,x,y,,", "4,d,x,y,2,3")
    other = cells(tmp_path / "b.csv", JOINED, "3,C,x,y,,", "5,E,x,y,1,2", "1,A,x,y,1,2", "2,B,x,y,0,2")
    without = Positions.WITHOUT_BOS
    pairs, imported = pairs_of(clean, tmp_path, ImportOptions(join=other, positions=without))
    assert {(pair.pair_id, pair.clean, pair.corrupted, pair.roles) for pair in pairs} == {
        (0, "a", "A", (Role("name", 1, 2, by_token=True),)),
        (2, "c", "C", ()),
    }
    assert imported.counts.read == 4
    assert imported.counts.refused == {
        "name has another position in the counterfactual file": 1,
        "no row of the same prompt_id in b.csv": 1,
    }
    bare = JOINED.removeprefix("prompt_id,")
    clean = cells(tmp_path / "a.csv", bare, "a,x,y,1,2", "b,x,y,1,2")
    other = cells(tmp_path / "b.csv", bare, "A,x,y,1,2", "B,x,y,1,2")
    pairs, _ = pairs_of(clean, tmp_path, ImportOptions(join=other))
    assert [(pair.clean, pair.corrupted) for pair in pairs] == [("a", "A"), ("b", "B")]
    other = cells(tmp_path / "b.csv", bare, "A,x,y,1,2")
    with pytest.raises(DatasetError, match=r"b\.csv has fewer rows than .*a\.csv"):
        pairs_of(clean, tmp_path, ImportOptions(join=other))
    twice = cells(tmp_path / "c.csv", JOINED, "1,A,x,y,1,2", "1,B,x,y,1,2")
    with pytest.raises(DatasetError, match="line 3: prompt_id '1' stands there twice"):
        pairs_of(cells(tmp_path / "d.csv", JOINED, "2,a,x,y,1,2", "3,b,x,y,1,2"), tmp_path, ImportOptions(join=twice))


def test_the_files_joined_are_not_written_over(tmp_path: Path) -> None:
    other = cells(tmp_path / "imported.parquet", JOINED, "1,A,x,y,1,2")
    with pytest.raises(DatasetError, match="both source and target"):
        pairs_of(FILES / "joined_clean.csv", tmp_path, ImportOptions(join=other))


def test_long_cells_are_read_from_two_files_in_turns(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "word " * 40_000
    clean = cells(tmp_path / "a.csv", JOINED, "1,a,x,y,1,2")
    other = cells(tmp_path / "b.csv", JOINED, f"2,{long},x,y,1,2", "3,b,x,y,1,2", f"1,{long},x,y,1,2")
    pairs, _ = pairs_of(clean, tmp_path, ImportOptions(join=other))
    assert pairs[0].corrupted == long
    assert csv.field_size_limit() == limit
