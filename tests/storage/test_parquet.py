"""Parquet files joined from parts: what any reader finds is what one writer would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.storage import parquet
from attrib_batch.storage.parquet import encode_parquet, join_parquet, read_between
from attrib_batch.storage.thrift import read_struct, write_struct
from attrib_batch.tables import PROMPTS, SCORES


def scores(n_rows: int, seed: int = 0) -> pa.Table:
    source = np.random.default_rng(seed)
    names = pa.array(["z", "mlp_out"])
    roles = pa.array(["IO", "end"])
    return pa.Table.from_arrays(
        [
            pa.array(np.sort(source.integers(0, 50, n_rows))),
            pa.DictionaryArray.from_arrays(pa.array(source.integers(0, 2, n_rows), pa.int32()), names),
            pa.array(source.integers(0, 30, n_rows), pa.int16()),
            pa.array(source.integers(-1, 9, n_rows), pa.int16(), mask=source.random(n_rows) < 0.2),
            pa.array(source.integers(0, 23, n_rows), pa.int32()),
            pa.DictionaryArray.from_arrays(
                pa.array(source.integers(0, 2, n_rows), pa.int32(), mask=source.random(n_rows) < 0.5), roles
            ),
            pa.array(source.normal(size=n_rows), pa.float32()),
        ],
        schema=SCORES,
    )


def joined(tables: list[pa.Table]) -> pa.Buffer:
    return join_parquet([encode_parquet(table) for table in tables])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_a_joined_file_holds_the_rows_of_its_parts_in_order(sizes: list[int]) -> None:
    tables = [scores(size, seed) for seed, size in enumerate(sizes)]
    file = pq.ParquetFile(pa.BufferReader(joined(tables)), page_checksum_verification=True)
    assert file.schema_arrow.equals(SCORES)
    assert file.read().equals(pa.concat_tables(tables))
    assert file.metadata.num_rows == sum(sizes)
    assert [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)] == sizes


def test_polars_duckdb_and_pyarrow_read_the_same(tmp_path: Path) -> None:
    tables = [scores(size, seed) for seed, size in enumerate((1000, 1, 7000, 300))]
    path = tmp_path / "part-000000000-000000008.parquet"
    path.write_bytes(joined(tables))
    whole = pa.concat_tables(tables).unify_dictionaries()
    expected = pl.from_arrow(whole)
    assert isinstance(expected, pl.DataFrame)
    names = [pl.col("component", "role").cast(pl.String)]
    assert pl.read_parquet(path).with_columns(names).equals(expected.with_columns(names))
    found = pl.scan_parquet(path).filter(pl.col("pair_id") == 7, pl.col("position") > 3).select("score").collect()
    wanted = expected.filter(pl.col("pair_id") == 7, pl.col("position") > 3).select("score")
    assert found.equals(wanted)
    relation = duckdb.read_parquet(str(path))
    assert relation.pl().with_columns(names).equals(expected.with_columns(names))
    inside = pl.col("pair_id").is_between(3, 20)
    found = relation.filter("pair_id between 3 and 20").pl().get_column("score").sort()
    assert found.equals(expected.filter(inside).get_column("score").sort())


def test_row_groups_say_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 100)
    parts = [scores(size, seed) for seed, size in enumerate((250, 30, 120))]  # one part of several row groups
    data = joined(parts)
    metadata = pq.read_metadata(pa.BufferReader(data))
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [100, 100, 50, 30, 100, 20]
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            assert 4 <= start < start + chunk.total_compressed_size <= data.size
    ids = [metadata.row_group(group).column(0).statistics for group in range(3, 4)]
    assert (ids[0].min, ids[0].max) == (parts[1]["pair_id"][0].as_py(), parts[1]["pair_id"][-1].as_py())


def test_a_footer_written_again_is_the_same_bytes() -> None:
    for table in (scores(1000), PROMPTS.empty_table(), scores(0)):
        data = encode_parquet(table)
        footer = parquet._footer(data)
        assert write_struct(read_struct(footer)) == footer
    long = joined([scores(5, seed) for seed in range(40)])
    assert write_struct(read_struct(parquet._footer(long))) == parquet._footer(long)


def test_files_of_other_schemas_are_not_joined() -> None:
    with pytest.raises(ValueError, match="several schemas"):
        join_parquet([encode_parquet(scores(5)), encode_parquet(PROMPTS.empty_table())])
    with pytest.raises(ValueError, match="no Parquet file"):
        join_parquet([])


@pytest.mark.parametrize(("low", "high", "groups"), [(0, 19, 4), (5, 9, 1), (7, 10, 2), (12, 12, 1), (40, 50, 0)])
def test_only_row_groups_with_wanted_rows_are_read(low: int, high: int, groups: int) -> None:
    ids = np.repeat(np.arange(20), 3)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"pair_id": ids, "score": np.arange(60.0)}), sink, row_group_size=15)
    file = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    read: list[int] = []
    true = file.read_row_groups

    def watched(wanted: list[int], **more: Any) -> pa.Table:
        read.extend(wanted)
        return true(wanted, **more)

    file.read_row_groups = watched
    table = read_between(file, None, "pair_id", low, high)
    assert len(read) == groups
    expected = (ids >= low) & (ids <= high)
    assert table["pair_id"].to_pylist() == ids[expected].tolist()
    assert table["score"].to_pylist() == np.flatnonzero(expected).tolist()


def test_row_groups_without_statistics_are_read() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"pair_id": [1, 2, 3, 4]}), sink, row_group_size=2, write_statistics=False)
    file = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    assert read_between(file, None, "pair_id", 2, 3)["pair_id"].to_pylist() == [2, 3]
