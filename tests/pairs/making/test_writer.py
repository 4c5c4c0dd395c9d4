from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import DatasetError, OutputError, RequestError
from attrib_batch.pairs.making import writer
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import TableForm, pairs_schema
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role
from attrib_batch.tables import PAIRS
from tests.support.tiny_models import save_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.object_store import ObjectStore


@pytest.fixture(scope="module")
def bucket(object_store_server: ObjectStore) -> str:
    return object_store_server.make_bucket("written-pairs")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pairs = [
        Pair(3, "a b", "a c", (" d", None), (), (Role("x", 0, 1),), "task", "t", 9),
        Pair(4, None, "", None, (" e",)),
    ]
    assert write_pairs(tmp_path / "new folder" / "p.parquet", pairs) == 2
    assert PairTable.open(tmp_path / "new folder" / "p.parquet").rows(0, 2) == pairs


def test_token_ids_are_written_and_read_back_as_integers(tmp_path: Path) -> None:
    pairs = [Pair(3, "a b", "a c", None, (" e",)), Pair(4, "a", "b", (5, None, 6), None)]
    write_pairs(tmp_path / "p.parquet", pairs, form=TableForm(id_columns=["answers"]), row_group_rows=1)
    table = PairTable.open(tmp_path / "p.parquet")
    assert table.rows(0, 2) == pairs
    assert table.form.id_columns == {"answers"}
    assert pq.read_schema(tmp_path / "p.parquet").field("answers").type == pa.list_(pa.int64())
    assert writer.serialize_pairs(table.rows(0, 2), form=table.form).startswith(b"PAR1")


def test_rows_are_in_row_groups_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    assert write_pairs(path, generate_ioi(25, 0), row_group_rows=10) == 25
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(PAIRS)
    assert [file.metadata.row_group(g).num_rows for g in range(3)] == [10, 10, 5]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_pairs(path, generate_ioi(500, 0))
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="rows 0 to 499 cannot be read"):
        PairTable.open(path).rows(0, 500)


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_pairs(path, generate_ioi(2, 0))
    before = path.read_bytes()

    def broken() -> Iterator[Pair]:
        yield from generate_ioi(25, 0)
        raise DatasetError("line 26")

    with pytest.raises(DatasetError, match="line 26"):
        write_pairs(path, broken(), row_group_rows=10)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_an_object_is_there_when_it_is_complete(object_store: ObjectStore, bucket: str) -> None:
    url = f"s3://{bucket}/new/p.parquet"
    assert write_pairs(url, generate_ioi(25, 0), row_group_rows=10) == 25
    assert PairTable.open(url).rows(0, 25) == list(generate_ioi(25, 0))
    before = object_store.get(f"{bucket}/new/p.parquet")

    def broken() -> Iterator[Pair]:
        yield from generate_ioi(15_000, 0)
        assert object_store.get(f"{bucket}/new/p.parquet") == before
        raise DatasetError("line 15001")

    with pytest.raises(DatasetError, match="line 15001"):
        write_pairs(url, broken())
    assert object_store.get(f"{bucket}/new/p.parquet") == before


@pytest.mark.parametrize("url", ["s3://bucket", "hf://datasets/a/b/p.parquet", "https://example.org/p.parquet"])
def test_urls_that_no_table_is_written_to(url: str) -> None:
    with pytest.raises(RequestError, match=r"name a file in it|are written to local paths, s3:// and gs://"):
        write_pairs(url, generate_ioi(2, 0))


def test_a_full_disk_for_temporary_files_is_named(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(OutputError, match=rf"s3://{bucket}/p.parquet: No space left on device.* TMPDIR"):
        write_pairs(f"s3://{bucket}/p.parquet", generate_ioi(2, 0))


def test_the_verbs_for_pairs_take_urls(object_store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("clean,corrupted,answers,wrong_answers\na b,a c,d,e\n")
    model = save_tiny("llama", tmp_path / "model")
    made, imported = f"s3://{bucket}/made.parquet", f"s3://{bucket}/imported.parquet"

    def said(*arguments: str) -> str:
        return CliRunner().invoke(app, ["pairs", *arguments], catch_exceptions=False).output

    assert said("make", "ioi", "--count", "20", "--out", made) == f"20 pairs -> {made}\n"
    assert said("import", str(tmp_path / "p.csv"), "--out", imported).startswith(f"1 pairs -> {imported}\n")
    assert "20 pairs in 10 sampling units" in said("describe", made)
    assert "1 pairs" in said("validate", imported, "--model", str(model))


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_pairs(tmp_path / "file" / "p.parquet", generate_ioi(2, 0))


def test_a_plain_table_is_written_in_the_plain_schema_to_the_byte() -> None:
    assert pairs_schema(TableForm()).serialize() == PAIRS.serialize()
