from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from attrib_batch.errors import DatasetError, OutputError
from attrib_batch.pairs.ioi import generate_ioi
from attrib_batch.pairs.reader import Pair, PairTable, Role
from attrib_batch.pairs.writer import write_pairs
from attrib_batch.schema import PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pairs = [
        Pair(3, "a b", "a c", (" d", None), (), (Role("x", 0, 1),), "task", "t", 9),
        Pair(4, None, "", None, (" e",)),
    ]
    assert write_pairs(tmp_path / "new folder" / "p.parquet", pairs) == 2
    assert PairTable.open(tmp_path / "new folder" / "p.parquet").rows(0, 2) == pairs


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
        yield from generate_ioi(15_000, 0)
        raise DatasetError("line 15001")

    with pytest.raises(DatasetError, match="line 15001"):
        write_pairs(path, broken())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_pairs(tmp_path / "file" / "p.parquet", generate_ioi(2, 0))
