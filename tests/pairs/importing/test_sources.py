"""Files of every kind give the same rows, in bounded memory; what is in them is never executed."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing import counts as counting
from attrib_batch.pairs.importing import json_stream
from attrib_batch.pairs.importing.counts import Counts
from attrib_batch.pairs.importing.json_stream import JsonStream
from attrib_batch.pairs.importing.literals import list_from_cell
from attrib_batch.pairs.importing.opening import FileKind
from attrib_batch.pairs.importing.options import ImportOptions
from attrib_batch.pairs.importing.recipe import Reading
from attrib_batch.pairs.importing.registry import RECIPES
from attrib_batch.pairs.importing.sources import Source

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = [{"clean": f"a {n}", "corrupted": f"b,\n{n}", "answers": " c", "wrong_answers": " d"} for n in range(3)]
HEADER = "clean,corrupted,answers,wrong_answers"
CSV = f"{HEADER}\r\n" + "".join(f'a {n},"b,\n{n}", c, d\r\n' for n in range(3))
LINES = "".join(json.dumps(row) + "\r\n" for row in ROWS)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def found(path: Path, data: bytes) -> Source:
    path.write_bytes(data)
    return Source.find(path)


@pytest.mark.parametrize(("ending", "mark"), [("", ""), ("", "\ufeff"), (".gz", ""), (".zst", "\ufeff")])
@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("p.csv", CSV, FileKind.CSV),
        ("p.tsv", CSV.replace(",", "\t").replace("b\t", "b,"), FileKind.TSV),
        ("p.jsonl", LINES, FileKind.JSON_LINES),
        ("p.ndjson", LINES, FileKind.JSON_LINES),
        ("lines.json", LINES, FileKind.JSON_LINES),
        ("one.json", json.dumps(ROWS[0]), FileKind.JSON_LINES),
        ("array.json", json.dumps(ROWS), FileKind.JSON_ARRAY),
        ("array.jsonl", f"\n {json.dumps(ROWS, indent=1)}\n", FileKind.JSON_ARRAY),
        ("object.json", json.dumps({"x": 1, "prompts": ROWS, "y": [2]}, indent=2), FileKind.JSON_OBJECT),
    ],
)
def test_a_file_is_read_by_what_is_in_it(
    tmp_path: Path, *, name: str, text: str, kind: FileKind, mark: str, ending: str
) -> None:
    source = found(tmp_path / (name + ending), COMPRESSIONS[ending]((mark + text).encode()))
    assert source.kind is kind
    rows = list(source.rows())
    assert [row.values for row in rows] == ROWS[: len(rows)]
    assert len(rows) == (1 if name == "one.json" else 3)
    assert [row.number for row in rows] == list(range(len(rows)))
    assert source.head == ({"x": 1, "y": [2]} if kind is FileKind.JSON_OBJECT else {})


def test_what_follows_another_compressed_piece_is_read_too(tmp_path: Path) -> None:
    for ending, compress in COMPRESSIONS.items():
        source = found(tmp_path / f"p.csv{ending}", compress(CSV.encode()) + compress(b"x,y,z,w\n"))
        assert [row.values["clean"] for row in source.rows()] == ["a 0", "a 1", "a 2", "x"]


def test_a_name_need_not_say_how_a_file_is_compressed(tmp_path: Path) -> None:
    assert len(list(found(tmp_path / "p.csv", gzip.compress(CSV.encode())).rows())) == 3


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off_is_an_error(tmp_path: Path, ending: str) -> None:
    whole = COMPRESSIONS[ending](LINES.encode() * 50)
    # Already to tell what kind of file it is, some of it is unpacked.
    with pytest.raises(DatasetError, match=r"p\.jsonl.*(cannot be decompressed|cannot be read: Truncated)"):
        list(found(tmp_path / f"p.jsonl{ending}", whole[: len(whole) // 2]).rows())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON, or it is cut off"),
        ("[1]", "element 0 is not a JSON object"),
        ('[{"a": 1} {"b": 2}]', "a comma is missing"),
        ('[{"a": 1}', "cut off, or a comma"),
        ("[]", "has no rows"),
        ("", "has no rows"),
        ('{"prompts": [{}], 7: 1}', "no key where one should stand"),
        ('{"prompts": [{}] "a": 1}', "a comma is missing"),
        ('{"prompts": [{}], 7', "is not JSON|no key"),
        ("[" * 100_000, "nested|recursion|not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "line 1 is not JSON"),
        ("{" * 20, "line 1 is not JSON"),
    ],
)
def test_json_that_is_none_is_an_error_and_no_crash(tmp_path: Path, text: str, message: str) -> None:
    source = found(tmp_path / "p.json", text.encode())
    with pytest.raises(DatasetError, match=message):
        list(source.rows())


def test_parquet_is_not_unpacked_twice(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"clean": ["a"]}), sink)
    assert [row.values for row in found(tmp_path / "p.data", sink.getvalue()).rows()] == [{"clean": "a"}]
    with pytest.raises(DatasetError, match="compressed as a whole"):
        found(tmp_path / "p.parquet.gz", gzip.compress(sink.getvalue()))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=6), st.integers(1, 7), st.sampled_from([None, 2]))
def test_an_array_read_piece_by_piece_is_what_the_json_module_reads(
    values: list[Any], size: int, indent: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_READ_CHARACTERS", size)
        stream = JsonStream(io.StringIO(f" {json.dumps(values, indent=indent)} "), "p")
        assert stream.take("[")
        assert list(stream.elements()) == values
        stream = JsonStream(io.StringIO(json.dumps(dict(enumerate(values)), indent=indent)), "p")
        assert stream.take("{")
        assert {int(key): stream.value() for key in stream.members()} == dict(enumerate(values))


def test_a_value_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_LONGEST_VALUE", 1000)
    monkeypatch.setattr(json_stream, "_READ_CHARACTERS", 100)
    with pytest.raises(DatasetError, match="longer than 1,000 characters"):
        JsonStream(io.StringIO('"' + "a" * 10_000), "p").value()


def big(folder: Path, kind: str, n: int) -> Path:
    """A file of ``n`` rows, none of which is another's repeat."""
    rows = [
        {"clean": f"{n} " + "word " * 20, "corrupted": "b", "answers": " c", "wrong_answers": " d"} for n in range(n)
    ]
    path = folder / f"{n}.{kind}"
    lines = "\n".join(map(json.dumps, rows))
    match kind:
        case "csv":
            path.write_text(f"{HEADER}\n" + "".join(f"{row['clean']},b, c, d\n" for row in rows))
        case "csv.zst":
            path.write_bytes(zstd((f"{HEADER}\n" + "".join(f"{row['clean']},b, c, d\n" for row in rows)).encode()))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json":
            path.write_text(json.dumps(rows))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    return path


def peak_of_reading(path: Path) -> tuple[int, int]:
    """Return how many pairs a file gives, and the most memory that was held while they were read."""
    reading = Reading(Source.find(path), ImportOptions(), Counts())
    tracemalloc.start()
    try:
        n = sum(1 for _ in RECIPES["table"].read(reading))
        return n, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["csv", "csv.zst", "jsonl.gz", "json", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "REPEATS_LOOKED_FOR", 500)
    # A file of JSON is read in pieces of a quarter of a million characters: the smaller file has several.
    (_, small), (n, large) = peak_of_reading(big(tmp_path, kind, 5_000)), peak_of_reading(big(tmp_path, kind, 20_000))
    assert n == 20_000
    # The text alone of 15,000 more rows is 1.6 million characters.
    assert large < small + 300_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['a', \"b\"]", ["a", "b"]),
        (" (1, 2) ", [1, 2]),
        ("[]", []),
        ("'a'", None),
        ("{'a': 1}", None),
        ("[print('x')]", None),
        ("[__import__('os').system('true')]", None),
        ("[a for a in [1]]", None),
        ("[open]", None),
        ("['a'", None),
        ("[" * 200 + "]" * 200, None),
        ("[" + "1," * 600_000 + "]", None),
        ("['\\ud800']", ["\ud800"]),
        ("['a\x00']", None),
    ],
)
def test_only_literals_are_read_from_cells(text: str, expected: list[Any] | None) -> None:
    assert list_from_cell(text) == expected
