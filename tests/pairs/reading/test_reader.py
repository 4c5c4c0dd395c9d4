from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.reader import PairTable, Role
from attrib_batch.tables import REQUIRED_PAIR_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_rows_cross_row_groups_and_stop_at_the_end(table: Callable[..., Path]) -> None:
    pairs = PairTable.open(table(25, row_group_size=10))
    assert [p.clean for p in pairs.rows(8, 22)] == [f"clean {i}" for i in range(8, 22)]
    assert [p.pair_id for p in pairs.rows(20, 99)] == [20, 21, 22, 23, 24]
    assert pairs.rows(25, 30) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=8), group=st.integers(1, 60))
def test_any_sequence_of_calls_gives_the_rows_asked_for(
    tmp_path: Path, calls: list[tuple[int, int]], group: int
) -> None:
    path = tmp_path / f"groups-of-{group}.parquet"
    columns = {"clean": [str(i) for i in range(50)], "corrupted": ["x"] * 50}
    pq.write_table(
        pa.table({**columns, "answers": ["a"] * 50, "wrong_answers": ["b"] * 50}), path, row_group_size=group
    )
    pairs = PairTable.open(path)
    for start, length in calls:
        got = [p.clean for p in pairs.rows(start, start + length)]
        assert got == [str(i) for i in range(start, min(start + length, 50))]


def test_calls_in_sequence_decode_a_huge_row_group_once(
    table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = PairTable.open(table(30_000, row_group_size=30_000))
    decoded = 0
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: object, **options: object) -> object:
        nonlocal decoded
        for batch in iter_batches(self, *args, **options):
            decoded += batch.num_rows
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert sum(len(batch) for batch in pairs.batches(256)) == 30_000
    assert decoded == 30_000
    decoded = 0
    pairs.rows(100, 200)
    assert decoded < 10_000  # the rest of the row group stays unread


def test_only_the_row_groups_needed_are_read(table: Callable[..., Path]) -> None:
    path = table(100, row_group_size=10, clean=[f"clean {i:03d} {'x' * 200}" for i in range(100)])
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    pairs = PairTable.open(path)
    messages = []
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"pairs\.parquet: rows 0 to 4 cannot be read") as caught:
            pairs.rows(0, 5)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert pairs.rows(50, 51)[0].clean == f"clean 050 {'x' * 200}"  # and the table goes on working


def test_limit_cuts_the_table(table: Callable[..., Path]) -> None:
    pairs = PairTable.open(table(25), limit=12)
    assert pairs.n_rows == 12
    assert [len(batch) for batch in pairs.batches(5)] == [5, 5, 2]
    assert PairTable.open(pairs.path, limit=99).n_rows == 25
    with pytest.raises(DatasetError, match="limit"):
        PairTable.open(pairs.path, limit=0)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
    ],
    ids=str,
)
def test_answers_of_any_text_type_are_lists(table: Callable[..., Path], kind: pa.DataType) -> None:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    values = pa.array([[" a"], None] if is_list else [" a", None], pa.string() if not is_list else kind)
    pairs = PairTable.open(table(2, answers=values.cast(kind))).rows(0, 2)
    assert [p.answers for p in pairs] == [(" a",), None]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint16(), pa.list_(pa.int32()), pa.large_list(pa.int64())], ids=str)
def test_answers_of_any_integer_type_are_token_ids(table: Callable[..., Path], kind: pa.DataType) -> None:
    values = pa.array([7, None], kind) if pa.types.is_integer(kind) else pa.array([[7, None], None], kind)
    found = PairTable.open(table(2, answers=values))
    assert found.form.id_columns == {"answers"}
    assert [p.answers for p in found.rows(0, 2)] == [(7,) if pa.types.is_integer(kind) else (7, None), None]
    assert [p.wrong_answers for p in found.rows(0, 1)] == [(" no",)]
    assert PairTable.open(table(2)).form.id_columns == set()


def test_optional_columns_are_read(table: Callable[..., Path]) -> None:
    roles = [[{"name": "IO", "start": 0, "end": 5}], None, [{"name": None, "start": 0, "end": 5}, None]]
    path = table(3, pair_id=[7, 8, 9], roles=roles, task=["ioi", None, "x"], template=["t"] * 3, group=[1, 1, None])
    first, second, third = PairTable.open(path).rows(0, 3)
    assert (first.pair_id, first.task, first.template, first.group) == (7, "ioi", "t", 1)
    assert first.roles == (Role("IO", 0, 5),)
    assert second.roles == ()
    assert third.group is None
    assert third.roles == (Role("null", 0, 0), Role("null", 0, 0))  # no tokenizer aligns an empty span


def test_an_all_null_optional_column_is_absent(table: Callable[..., Path]) -> None:
    assert PairTable.open(table(2, roles=pa.nulls(2), group=pa.nulls(2))).rows(0, 1)[0].group is None


def test_missing_columns_are_named_with_those_present(table: Callable[..., Path]) -> None:
    path = table(clean=None, answers=None, prompt=["a"] * 3)
    with pytest.raises(DatasetError, match=r"no column clean, answers.*prompt.*pairs import"):
        PairTable.open(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("clean", [1, 2, 3], "clean is int64 and should be string"),
        ("clean", pa.nulls(3), "clean is null"),
        ("answers", [[1.0], [2.0], [3.0]], "answers is list.*should be a list of strings or a string, or of token ids"),
        ("wrong_answers", [True, False, True], "wrong_answers is bool"),
        ("pair_id", ["a", "b", "c"], "pair_id is string and should be an integer"),
        ("group", [1.0, 2.0, 3.0], "group is double and should be an integer"),
        ("roles", ["IO"] * 3, "roles is string and should be a list of structs"),
        ("roles", [[{"name": "IO", "start": 0}]] * 3, "roles is list"),
    ],
)
def test_wrong_types_are_named(table: Callable[..., Path], column: str, values: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        PairTable.open(table(**{column: values}))


def test_a_file_that_is_no_table_is_refused(table: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        PairTable.open(tmp_path / "absent.parquet")
    with pytest.raises(DatasetError, match="not a file"):
        PairTable.open(tmp_path)
    text = tmp_path / "pairs.csv"
    text.write_text("clean,corrupted\n")
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        PairTable.open(text)
    with pytest.raises(DatasetError, match="no rows"):
        PairTable.open(table(0, **dict.fromkeys(REQUIRED_PAIR_COLUMNS, pa.array([], pa.string()))))


def test_a_truncated_file_is_refused(table: Callable[..., Path]) -> None:
    path = table(50)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="truncated or damaged"):
        PairTable.open(path)


def test_text_that_is_not_utf8_is_a_dataset_error(table: Callable[..., Path]) -> None:
    raw = pa.array([b"ok", b"\xff\xfe", b"ok"])
    path = table(3, clean=pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2]))
    with pytest.raises(DatasetError, match="cannot be read"):
        PairTable.open(path).rows(0, 3)


def test_the_fingerprint_is_that_of_the_bytes(table: Callable[..., Path]) -> None:
    path = table()
    assert PairTable.open(path, limit=1).fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_ids_absent_or_rising_are_fine(table: Callable[..., Path]) -> None:
    PairTable.open(table(30)).check_ids()
    PairTable.open(table(30, pair_id=list(range(5, 35)))).check_ids()
    PairTable.open(table(30, pair_id=list(range(30, 0, -1)))).check_ids()


def test_a_repeated_id_is_named_with_its_rows(table: Callable[..., Path]) -> None:
    ids = list(range(25))
    ids[17] = 4
    path = table(25, pair_id=ids, row_group_size=6)
    with pytest.raises(DatasetError, match=r"pair_id 4 stands in row 4 and again in row 17; 1 rows.*row number"):
        PairTable.open(path).check_ids()
    PairTable.open(path, limit=17).check_ids()  # what is not read need not be right


def test_a_repeat_across_batches_is_found(table: Callable[..., Path]) -> None:
    path = table(20, pair_id=[*range(10), *range(9, 19)], row_group_size=10)
    with pytest.raises(DatasetError, match="pair_id 9 stands in row 9 and again in row 10"):
        PairTable.open(path).check_ids()


def test_a_null_id_is_named_with_its_row(table: Callable[..., Path]) -> None:
    path = table(15, pair_id=[*range(12), None, 13, 14])
    for read in (lambda t: t.check_ids(), lambda t: t.rows(0, 15)):
        with pytest.raises(DatasetError, match="pair_id is null in row 12"):
            read(PairTable.open(path))


@given(ids=st.lists(st.integers(0, 8), min_size=1, max_size=20))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_repeated_rows_are_those_whose_id_came_before(table: Callable[..., Path], ids: list[int]) -> None:
    path = table(len(ids), pair_id=ids, row_group_size=3)
    expected = [row for row, pair_id in enumerate(ids) if pair_id in ids[:row]]
    assert PairTable.open(path).repeated_id_rows().tolist() == expected
