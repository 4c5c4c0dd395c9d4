"""Boundaries of chunks that would split a group: found from one column, a few rows at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.pairs.reading import groups
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell
from attrib_batch.tables.plan import MAX_GROUP_CHUNKS, CellPlan

Groups = list[int | None]


def naive(column: Groups, begin: int, stop: int, chunk_pairs: int) -> dict[int, int]:
    """The same from a list that lies in memory."""
    moved = {}
    for boundary in range(begin + chunk_pairs, stop, chunk_pairs):
        group, start, end = column[boundary], boundary, boundary
        while group is not None and end < stop and column[end] == group:
            end += 1
        while group is not None and start > begin and column[start - 1] == group:
            start -= 1
        if start < boundary and end - start <= MAX_GROUP_CHUNKS * chunk_pairs:
            moved[boundary] = end
    return moved


RUNS = st.lists(st.tuples(st.none() | st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=30)


@given(RUNS, st.integers(1, 6), st.integers(1, 7), st.integers(1, 9), st.data())
def test_the_boundaries_are_those_that_a_list_in_memory_gives(
    runs: list[tuple[int | None, int]], chunk_pairs: int, batch_rows: int, row_group: int, data: st.DataObject
) -> None:
    column: Groups = [group for group, size in runs for _ in range(size)]
    begin = data.draw(st.integers(0, len(column) - 1))
    stop = data.draw(st.integers(begin + 1, len(column)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_BATCH_ROWS", batch_rows)
        path = Path(folder) / "pairs.parquet"
        pq.write_table(pa.table({"group": pa.array(column, pa.int64())}), path, row_group_size=row_group)
        moved = groups.moved_boundaries(pq.ParquetFile(path), begin, stop, chunk_pairs)
    assert moved == naive(column, begin, stop, chunk_pairs)


@given(RUNS, st.integers(1, 6))
def test_chunks_hold_groups_whole_and_stay_small(runs: list[tuple[int | None, int]], chunk_pairs: int) -> None:
    column: Groups = [group for group, size in runs for _ in range(size)]
    plan = CellPlan.of(
        Cell("m", "d", "k"), len(column), chunk_pairs, lambda _, begin, stop, size: naive(column, begin, stop, size)
    )
    chunks = list(plan.chunks())
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(len(column)))
    assert max(chunk.n_pairs for chunk in chunks) <= (MAX_GROUP_CHUNKS + 1) * chunk_pairs
    for chunk in chunks[1:]:
        group, start, end = column[chunk.start], chunk.start, chunk.start
        if group is None or column[start - 1] != group:
            continue
        while start > 0 and column[start - 1] == group:
            start -= 1
        while end < len(column) and column[end] == group:
            end += 1
        assert end - start > MAX_GROUP_CHUNKS * chunk_pairs, "only a group that is too long is split"


def test_a_table_without_groups_is_not_read(table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PairTable.open(table(20))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("read"))
    assert plain.moved_boundaries(0, 20, 4) == {}


def test_one_chunk_needs_no_look_at_groups(table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = PairTable.open(table(20, group=[0] * 20))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("read"))
    assert grouped.moved_boundaries(0, 20, 20) == {}


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.null()], ids=str)
def test_groups_of_any_integer_type(kind: pa.DataType, table: Callable[..., Path]) -> None:
    values = [None] * 6 if kind == pa.null() else [1, 1, 1, 2, 2, None]
    moved = PairTable.open(table(6, group=pa.array(values, kind))).moved_boundaries(0, 6, 2)
    assert moved == ({} if kind == pa.null() else {2: 3, 4: 5})


def test_groups_that_cannot_be_read_leave_boundaries_where_they_are(table: Callable[..., Path]) -> None:
    path = table(20, group=[row // 3 for row in range(20)], row_group_size=10)
    meta = pq.read_metadata(path).row_group(1).column(4)
    assert meta.path_in_schema == "group"
    start = meta.dictionary_page_offset or meta.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + meta.total_compressed_size] = b"\xff" * meta.total_compressed_size
    path.write_bytes(content)
    assert PairTable.open(path).moved_boundaries(0, 20, 4) == {4: 6, 8: 9}
