"""gs:// against an emulator of Google Cloud Storage: runs' files, datasets, and what is said when there is none.

The emulator answers one request at a time, and pyarrow asks for a part of an object while it still has the answer for
the whole: objects that are read here are smaller than the buffers of a connection.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pytest

from attrib_batch.errors import DatasetError, OutputError
from attrib_batch.pairs.importing.importer import import_pairs
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.writer import serialize_pairs, write_pairs
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table, part_name
from tests.pairs.importing.files_of import FILES, pairs_of
from tests.support.google_store import GOOGLE_BUCKET, ask_google


@pytest.fixture
def google(google_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The emulator, with the environment of this process leading to it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{google_store}")
    return google_store


def test_files_of_a_run_are_written_listed_read_and_removed(google: str) -> None:
    store = Store.parse(f"gs://{GOOGLE_BUCKET}/run")
    assert not store.exists("manifest.json")
    assert store.list("scores", recursive=True) == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("manifest.json")
    store.write_bytes("manifest.json", b"{}")
    store.write_bytes("manifest.json", b"[]")
    assert store.read_bytes("manifest.json") == b"[]"
    table = pa.table({"a": pa.array([1, 2, 3], pa.int64())})
    for start in (0, 4):
        store.write_table(f"scores/model=m/{part_name(start, start + 4)}", table)
    assert store.parts(Table.SCORES, "model=m") == {(0, 4), (4, 8)}
    [first, second] = store.list("scores", recursive=True)
    assert str(first) == f"gs://{GOOGLE_BUCKET}/run/scores/model=m/{part_name(0, 4)}"
    assert first.modified_ns > 0
    assert store.count_rows(second.relative) == 3
    assert store.read_table(second.relative) == table
    store.remove(first.relative)
    store.remove(first.relative)
    assert store.parts(Table.SCORES, "model=m") == {(4, 8)}


def test_pairs_are_imported_from_there(google: str, tmp_path: Path) -> None:
    expected, _ = pairs_of(FILES / "agreement.csv", tmp_path)
    Store.parse(f"gs://{GOOGLE_BUCKET}").write_bytes("agreement.csv", (FILES / "agreement.csv").read_bytes())
    imported = import_pairs(f"gs://{GOOGLE_BUCKET}/agreement.csv", tmp_path / "pairs.parquet")
    assert PairTable.open(tmp_path / "pairs.parquet").rows(0, imported.n_pairs) == expected
    with pytest.raises(DatasetError, match="no such object"):
        import_pairs(f"gs://{GOOGLE_BUCKET}/absent.csv", tmp_path / "absent.parquet")


def test_a_large_file_arrives_whole(google: str) -> None:
    data = os.urandom(12 << 20)  # more than pyarrow sends at once
    Store.parse(f"gs://{GOOGLE_BUCKET}").write_bytes("large", data)
    assert ask_google(google, f"/storage/v1/b/{GOOGLE_BUCKET}/o/large?alt=media") == (200, data)


def test_a_table_of_pairs_is_written_read_and_known_by_its_content(google: str) -> None:
    url, pairs = f"gs://{GOOGLE_BUCKET}/pairs.parquet", list(generate_ioi(20, 0))
    assert write_pairs(url, pairs) == 20
    table = PairTable.open(url)
    table.check_ids()
    assert table.rows(3, 9) == pairs[3:9]
    assert table.fingerprint() == hashlib.sha256(serialize_pairs(pairs)).hexdigest()
    pinned = PinnedTable(url, None, table.pin())
    assert pinned.rows(0, 20) == pairs
    write_pairs(url, generate_ioi(20, 1))
    with pytest.raises(DatasetError, match="has changed since the run began"):
        pinned.rows(0, 20)


@pytest.mark.usefixtures("google")
def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such object, or no such bucket"):
        PairTable.open(f"gs://{GOOGLE_BUCKET}/absent.parquet")
    with pytest.raises(OutputError, match=r"cannot write gs://absent/x: there is no bucket absent\.") as refused:
        Store.parse("gs://absent").write_bytes("x", b"data")
    assert refused.value.exit_code == 2
