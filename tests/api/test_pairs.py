"""Pairs in whatever form a caller has them, as the table that a run reads."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from attrib_batch.api.pairs import pairs_path
from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.notes import TableNotes, TokenizerNote
from attrib_batch.pairs.reading.reader import Pair, PairTable, Role

ROW = {"clean": "w1 w2", "corrupted": "w1 w3", "answers": [" w4", " w5"], "wrong_answers": [" w6"]}
PAIR = Pair(0, "w1 w2", "w1 w3", (" w4", " w5"), (" w6",))


def written(pairs: Any, out: Path) -> PairTable:
    path = pairs_path(pairs, out, "mine")
    assert Path(path) == out / "pairs/mine.parquet"
    return PairTable.open(path)


def read(pairs: Any, out: Path) -> list[Pair]:
    table = written(pairs, out)
    return table.rows(0, table.n_rows)


@pytest.mark.parametrize("path", ["pairs.parquet", Path("a/pairs.parquet"), "s3://bucket/pairs.parquet"])
def test_a_path_is_left_as_it_is_and_nothing_is_written(path: str | Path, tmp_path: Path) -> None:
    assert pairs_path(path, tmp_path, "mine") == str(path)
    assert list(tmp_path.iterdir()) == []


FORMS = {
    "list": list,
    "tuple": tuple,
    "polars": pl.DataFrame,
    "lazy polars": lambda rows: pl.DataFrame(rows).lazy(),
    "arrow": pa.Table.from_pylist,
    "pandas": pd.DataFrame,
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_any_form_are_the_same_table(form: str, tmp_path: Path) -> None:
    rows = [
        {
            **ROW,
            "pair_id": 7,
            "roles": [{"name": "end", "start": 3, "end": 5}],
            "task": "t",
            "template": "x",
            "group": 4,
        },
        {**ROW, "pair_id": 5, "roles": None, "task": None, "template": None, "group": None},
    ]
    assert read(FORMS[form](rows), tmp_path) == [
        replace(PAIR, pair_id=7, roles=(Role("end", 3, 5),), task="t", template="x", group=4),
        replace(PAIR, pair_id=5),
    ]


def test_pairs_of_the_package_are_rows_too(tmp_path: Path) -> None:
    pairs = [replace(PAIR, pair_id=number, group=2) for number in (3, 1)]
    assert read(pairs, tmp_path) == pairs


def test_what_is_left_out_is_filled_in(tmp_path: Path) -> None:
    assert read([ROW, ROW], tmp_path) == [PAIR, replace(PAIR, pair_id=1)]


def test_missing_values_of_pandas_are_none(tmp_path: Path) -> None:
    """Beside a missing one, pandas makes every whole number a fraction."""
    frame = pd.DataFrame([{**ROW, "group": 3, "task": "t"}, {**ROW, "task": float("nan")}])
    assert frame["group"].dtype == np.float64
    assert [(pair.group, pair.task) for pair in read(frame, tmp_path)] == [(3, "t"), (None, None)]


@pytest.mark.parametrize(
    ("answers", "kept", "ids"),
    [
        (" w4", (" w4",), set()),
        (7, (7,), {"answers"}),
        ([7, np.int64(8)], (7, 8), {"answers"}),
        (np.array([7, 8]), (7, 8), {"answers"}),
        (np.array([" w4"]), (" w4",), set()),
    ],
)
def test_answers_are_texts_or_token_ids_one_or_several(
    answers: Any, kept: tuple[object, ...], ids: set[str], tmp_path: Path
) -> None:
    table = written([{**ROW, "answers": answers}], tmp_path)
    assert table.form.id_columns == ids
    assert table.rows(0, 1)[0].answers == kept


def test_roles_may_be_a_mapping_from_names_to_spans(tmp_path: Path) -> None:
    [found] = read([{**ROW, "roles": {"a": (0, 2), "end": (3, 5)}}], tmp_path)
    assert found.roles == (Role("a", 0, 2), Role("end", 3, 5))


def test_pairs_given_anew_take_the_place_of_those_before(tmp_path: Path) -> None:
    read([ROW, ROW], tmp_path)
    assert len(read([ROW], tmp_path)) == 1


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([ROW, "text"], "row 1 is a str; expected a dict"),
        (ROW, "expected a path, a Polars or pandas frame, an Arrow table or a list of dicts, not a dict"),
        ([{}], "row 0 has no clean, corrupted, answers, wrong_answers; it has nothing"),
        ([{**ROW, "pair_id": 1.5}], "row 0, pair_id: expected a whole number, not 1.5"),
        ([{**ROW, "group": "a"}], "row 0, group: expected a whole number, not 'a'"),
        ([{**ROW, "answers": [True]}], "row 0, answers: expected texts or token ids, not True"),
        ([{**ROW, "task": 3}], "row 0, task: expected text, not 3"),
        ([{**ROW, "roles": {"a": (0, "x")}}], "row 0, roles: expected name, start and end of each"),
        ([{**ROW, "answers": [7]}, ROW], "answers mixes texts and token ids"),
        (pl.DataFrame(schema={"clean": pl.String}), "there is no row"),
    ],
)
def test_rows_that_are_no_pairs_are_refused_by_row_and_column(pairs: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=re.escape(says)):
        pairs_path(pairs, tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []


def test_roles_may_be_by_token_and_an_arrow_table_keeps_its_tokenizer(tmp_path: Path) -> None:
    row = {**ROW, "answers": [7], "wrong_answers": [8], "roles": [{"name": "a", "start_token": -1, "end_token": 0}]}
    table = written([row], tmp_path)
    assert table.rows(0, 1)[0].roles == (Role("a", -1, 0, by_token=True),)
    notes = TableNotes(TokenizerNote("gpt2"))
    arrow = pa.Table.from_pylist([row]).replace_schema_metadata(notes.metadata())
    assert written(arrow, tmp_path).form == replace(table.form, notes=notes)
    assert written(pl.from_arrow(arrow), tmp_path).form.notes == TableNotes()
