"""Atomic commits: a file is there whole or not at all, and nothing else is taken for a part."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from attrib_batch.errors import OutputError
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table, parse_part_name, part_name


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attrib_batch.storage.store.os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        store.write_bytes("scores/x.parquet", b"data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_readers_and_resume_do_not_see_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    table = pa.table({"a": [1]})
    store.write_table(f"scores/model=m/{part_name(0, 4)}", table)
    monkeypatch.setattr(Path, "replace", lambda *_: None)  # as if the process had died before the rename
    store.write_table(f"scores/model=m/{part_name(4, 8)}", table)
    assert len(list((tmp_path / "scores/model=m").iterdir())) == 2
    assert store.parts(Table.SCORES, "model=m") == {(0, 4)}
    assert pl.scan_parquet(tmp_path / "scores/**/*.parquet").collect().height == 1


def test_part_names() -> None:
    assert parse_part_name(part_name(5, 12_000_000_000)) == (5, 12_000_000_000)
    assert parse_part_name(f".tmp-{part_name(0, 4)}") is None
    assert parse_part_name("notes.parquet") is None
