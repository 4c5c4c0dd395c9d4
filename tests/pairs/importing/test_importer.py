from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.importer import import_pairs
from attrib_batch.pairs.importing.options import ImportOptions
from attrib_batch.pairs.reading.columns import AnswerKind
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role

if TYPE_CHECKING:
    from pathlib import Path

RENAMING = {"prompt": "clean", "counterfactual": "corrupted", "right": "answers", "wrong": "wrong_answers"}
HEADER = "prompt,counterfactual,right,wrong"


def imported(source: Path, mapping: dict[str, str]) -> list[Pair]:
    target = source.with_name("imported.parquet")
    n_rows = import_pairs(source, target, ImportOptions(columns=mapping)).n_pairs
    return PairTable.open(target).rows(0, n_rows)


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_csv_is_renamed_and_its_spaces_kept(tmp_path: Path) -> None:
    source = written(
        tmp_path,
        "p.csv",
        f'{HEADER},note\r\n"When Jo, and\nMary","When Al, and\nMary", Mary| Jane, Jo,x\r\nsecond,, Mary, Jo,y\r\n',
    )
    assert imported(source, RENAMING) == [
        Pair(0, "When Jo, and\nMary", "When Al, and\nMary", (" Mary", " Jane"), (" Jo",)),
        Pair(1, "second", None, (" Mary",), (" Jo",)),
    ]


def test_tsv_with_every_column_and_a_byte_order_mark(tmp_path: Path) -> None:
    roles = json.dumps([{"name": "IO", "start": 0, "end": 1}]).replace('"', '""')
    source = written(
        tmp_path,
        "p.tsv",
        "\ufeffclean\tcorrupted\tanswers\twrong_answers\tpair_id\tgroup\ttask\ttemplate\troles\n"
        f'a\tb\t c\t d\t7\t-1\tioi\tt\t"{roles}"\n',
    )
    assert imported(source, {}) == [Pair(7, "a", "b", (" c",), (" d",), (Role("IO", 0, 1),), "ioi", "t", -1)]


def test_json_lines_take_a_string_or_a_list(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "counterfactual": "b", "right": " c|d", "wrong": [" e", " f"]},
        {"wrong": None, "right": [None], "counterfactual": "b", "prompt": None, "group": 3},
    ]
    source = written(tmp_path, "p.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert imported(source, RENAMING) == [
        Pair(0, "a", "b", (" c|d",), (" e", " f")),
        Pair(1, None, "b", (None,), None, group=3),
    ]


def test_parquet_is_renamed(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    columns = {
        "prompt": ["a"] * 9000,
        "counterfactual": ["b"] * 9000,
        "right": [" c"] * 9000,
        "n": [1] * 9000,
    }
    pq.write_table(pa.table({**columns, "wrong": [[" d", " e"]] * 9000}), source)
    pairs = imported(source, RENAMING)
    assert len(pairs) == 9000
    assert pairs[8999] == Pair(8999, "a", "b", (" c",), (" d", " e"))


@pytest.mark.parametrize(
    ("text", "mapping", "message"),
    [
        (f"{HEADER}\n", RENAMING, "no rows"),
        (f"{HEADER}\na,b,c\n", RENAMING, "line 2: 3 cells under 4"),
        (f"{HEADER}\na,b,c,d\n", {}, "its columns are prompt, .*, and no known layout has these"),
        (f"{HEADER}\na,b,c,d\n", {"right": "answers"}, "line 2: nothing becomes the column clean; there are prompt, "),
        (f"{HEADER}\na,b,c,d\n", {**RENAMING, "x": "task"}, "no column 'x' to rename"),
        (f"{HEADER}\na,b,c,d\n", {**RENAMING, "wrong": "bad"}, "'bad' is no column of a table of pairs"),
        (f"{HEADER},clean\na,b,c,d,e\n", RENAMING, "prompt and clean would both be clean"),
        (f"{HEADER},wrong\na,b,c,d,e\n", RENAMING, "two columns have the same name"),
        (f"{HEADER},pair_id\na,b,c,d,1.5\n", RENAMING, r"line 2: pair_id is '1.5', not an integer"),
        (f"{HEADER},pair_id\na,b,c,d,{2**63}\n", RENAMING, "not an integer of 64 bits"),
        (f"{HEADER},pair_id\na,b,c,d,\n", RENAMING, "line 2: pair_id is null"),
        (f"{HEADER},roles\na,b,c,d,IO\n", RENAMING, "line 2: roles is not JSON"),
        (f'{HEADER},roles\na,b,c,d,"{{""name"": 1}}"\n', RENAMING, "a role is .* not an object with name"),
        (f'{HEADER}\na,b,c,"d\n', RENAMING, "unexpected end of data"),
    ],
)
def test_csv_that_cannot_be_pairs(tmp_path: Path, text: str, mapping: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        imported(written(tmp_path, "p.csv", text), mapping)
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 is not a JSON object"),
        ('{"clean": 1, "corrupted": "b", "answers": "c", "wrong_answers": "d"}', "clean is 1, not a string"),
        (
            '{"clean": "a", "corrupted": "b", "answers": 5, "wrong_answers": "d"}',
            r"line 2: answers is 5: whole numbers are read as token ids only with --answers ids",
        ),
        (
            '{"clean": "a", "corrupted": "b", "answers": "c", "wrong_answers": [" d", 7]}',
            r"line 2: wrong_answers is \[' d', 7\]: .*--answers ids",
        ),
        (
            '{"clean": "a", "corrupted": "b", "answers": {"c": 1}, "wrong_answers": "d"}',
            "answers is {'c': 1}, not a string or a list of strings",
        ),
        ('{"clean": "\\ud800", "corrupted": "b", "answers": "c", "wrong_answers": "d"}', "not valid Unicode"),
        ('{"clean": "a", "corrupted": "b", "answers": "c"}', "nothing becomes the column wrong_answers"),
    ],
)
def test_json_lines_that_cannot_be_pairs(tmp_path: Path, line: str, message: str) -> None:
    good = '{"clean": "a", "corrupted": "b", "answers": "c", "wrong_answers": "d"}'
    with pytest.raises(DatasetError, match=message):
        imported(written(tmp_path, "p.jsonl", f"{good}\n{line}\n"), {})


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        imported(tmp_path / "absent.csv", {})
    with pytest.raises(DatasetError, match=r"known are \.csv, \.tsv"):
        imported(written(tmp_path, "p.xlsx", ""), {})
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        imported(written(tmp_path, "p.parquet", "clean"), {})
    (tmp_path / "latin.csv").write_bytes(b"clean,corrupted,answers,wrong_answers\ncaf\xe9,b,c,d\n")
    with pytest.raises(DatasetError, match="not UTF-8"):
        imported(tmp_path / "latin.csv", {})


def test_a_source_is_not_written_over(tmp_path: Path) -> None:
    source = written(tmp_path, "p.csv", f"{HEADER}\na,b,c,d\n")
    with pytest.raises(DatasetError, match="both source and target"):
        import_pairs(source, source, ImportOptions(columns=RENAMING))


CELLS = "clean,corrupted,answers,wrong_answers"


def test_ids_are_read_as_ids_where_the_caller_says_so(tmp_path: Path) -> None:
    source = written(tmp_path, "p.csv", f"{CELLS}\na,b,5| 6 ,7\nc,d,,0\n")
    target = tmp_path / "ids.parquet"
    assert import_pairs(source, target, ImportOptions(answers=AnswerKind.IDS)).n_pairs == 2
    assert PairTable.open(target).rows(0, 2) == [Pair(0, "a", "b", (5, 6), (7,)), Pair(1, "c", "d", None, (0,))]
    assert PairTable.open(target).form.id_columns == {"answers", "wrong_answers"}
    rows = [
        {"clean": "a", "corrupted": "b", "answers": 5, "wrong_answers": [6, None]},
        {"clean": "a", "corrupted": "b", "answers": "5", "wrong_answers": ["6"]},
    ]
    lines = written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)))
    import_pairs(lines, target, ImportOptions(answers=AnswerKind.IDS))
    assert [(pair.answers, pair.wrong_answers) for pair in PairTable.open(target).rows(0, 2)] == [
        ((5,), (6, None)), ((5,), (6,)),
    ]  # fmt: skip


@pytest.mark.parametrize("cell", ["5|", "5|six", "-5", "5.0", "1_0", "٣", str(2**63), "9" * 5000])
def test_what_is_no_id_is_refused_with_its_line(tmp_path: Path, cell: str) -> None:
    source = written(tmp_path, "p.csv", f"{CELLS}\na,b,5,6\na,b,5,{cell}\n")
    with pytest.raises(DatasetError, match=r"p\.csv, line 3: wrong_answers holds '.*', which is no token id: with"):
        import_pairs(source, tmp_path / "out.parquet", ImportOptions(answers=AnswerKind.IDS))
    for value in (True, -5, 5.0):
        row = {"clean": "a", "corrupted": "b", "answers": [value], "wrong_answers": 6}
        lines = written(tmp_path, "p.jsonl", json.dumps(row))
        with pytest.raises(DatasetError, match=f"line 1: answers holds {value}, which is no token id"):
            import_pairs(lines, tmp_path / "out.parquet", ImportOptions(answers=AnswerKind.IDS))
    assert not (tmp_path / "out.parquet").exists()


def test_integers_in_parquet_are_refused_without_the_option(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    pq.write_table(pa.table({"clean": ["a"], "corrupted": ["b"], "answers": [[5]], "wrong_answers": [6]}), source)
    with pytest.raises(DatasetError, match=r"row 0: answers is \[5\]: .*--answers ids"):
        imported(source, {})
    import_pairs(source, tmp_path / "ids.parquet", ImportOptions(answers=AnswerKind.IDS))
    assert PairTable.open(tmp_path / "ids.parquet").rows(0, 1) == [Pair(0, "a", "b", (5,), (6,))]


@pytest.mark.parametrize(
    ("name", "rows", "looks"),
    [
        ("p.csv", "a,b,5|6,7\nc,d,,8\n", True),
        ("p.csv", "a,b, 5, 7\n", True),
        ("p.csv", "a,b,5,7\nc,d,5,seven\n", False),
        ("p.csv", "a,b,,\n", False),
        ("p.tsv", "a\tb\t5\t7\n", True),
    ],
)
def test_cells_of_whole_numbers_are_text_and_said_to_look_like_ids(
    tmp_path: Path, name: str, rows: str, looks: bool
) -> None:
    header = CELLS.replace(",", "\t") if name == "p.tsv" else CELLS
    source = written(tmp_path, name, f"{header}\n{rows}")
    assert import_pairs(source, tmp_path / "out.parquet").answers_look_like_ids is looks
    assert PairTable.open(tmp_path / "out.parquet").form.id_columns == set()


def test_the_command_line_names_the_option_where_answers_look_like_ids(tmp_path: Path) -> None:
    source = written(tmp_path, "p.csv", f"{CELLS}\na,b,5,6\n")
    for options, warned in (((), True), (("--answers", "ids"), False), (("--answers", "text"), True)):
        result = CliRunner().invoke(
            app, ["pairs", "import", str(source), "--out", str(tmp_path / "o.parquet"), *options]
        )
        assert result.exit_code == 0, result.output
        assert "1 pairs ->" in result.stdout
        assert ("--answers ids" in result.stderr) is warned
        assert len(result.stderr.splitlines()) == warned
        assert isinstance(PairTable.open(tmp_path / "o.parquet").rows(0, 1)[0].answers, tuple)


def test_cells_of_any_length_are_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "word " * 40_000
    source = written(tmp_path, "p.csv", f"{CELLS}\n{long},b, c, d\n")
    assert imported(source, {}) == [Pair(0, long, "b", (" c",), (" d",))]
    assert csv.field_size_limit() == before


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    source = written(tmp_path, "p.csv", f",{CELLS},, \n0,a,b, c, d,x,y\n")
    assert imported(source, {}) == [Pair(0, "a", "b", (" c",), (" d",))]
