"""A dataset that is replaced, damaged, touched or taken away while a run reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.pairs.reading.reader import PairTable
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import in_words

ROWS = in_words(random_pairs(20, 9, 4))
OTHERS = in_words(random_pairs(20, 9, 4, seed=1))


@pytest.fixture
def table(tmp_path: Path) -> PinnedTable:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, ROWS)
    return PinnedTable(str(path), None, PairTable.open(path).fingerprint())


def test_what_another_file_holds_is_refused_every_time(table: PinnedTable, tmp_path: Path) -> None:
    assert table.rows(0, 5) == ROWS[:5]
    write_pairs(tmp_path / "pairs.parquet", OTHERS)
    for start in (5, 5, 10):
        with pytest.raises(DatasetError, match=r"pairs\.parquet has changed since the run began"):
            table.rows(start, start + 5)
    write_pairs(tmp_path / "pairs.parquet", ROWS)
    assert table.rows(5, 10) == ROWS[5:10]


def test_a_file_that_was_refused_is_not_hashed_again(
    table: PinnedTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.parquet", OTHERS)
    with pytest.raises(DatasetError, match="has changed"):
        table.rows(0, 5)
    monkeypatch.setattr(PairTable, "fingerprint", lambda _: pytest.fail("hashed again"))
    with pytest.raises(DatasetError, match="has changed"):
        table.rows(0, 5)


def test_a_file_written_over_in_place_is_refused(table: PinnedTable, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    table.rows(0, 5)
    write_pairs(tmp_path / "others.parquet", OTHERS)
    path.write_bytes((tmp_path / "others.parquet").read_bytes())
    with pytest.raises(DatasetError, match="has changed since the run began"):
        table.rows(0, 20)


def test_a_file_that_was_only_touched_is_read_on(table: PinnedTable, tmp_path: Path) -> None:
    table.rows(0, 5)
    os.utime(tmp_path / "pairs.parquet", (1, 1))
    assert table.rows(5, 20) == ROWS[5:]


def test_a_file_that_is_gone_is_named(table: PinnedTable, tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").unlink()
    with pytest.raises(DatasetError, match=r"pairs\.parquet: no such file"):
        table.rows(0, 5)


def test_a_file_that_never_held_what_was_planned_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", ROWS)
    with pytest.raises(DatasetError, match="has changed since the run began"):
        PinnedTable(str(tmp_path / "pairs.parquet"), None, "0" * 64).rows(0, 5)
