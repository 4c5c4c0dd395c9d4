"""Summaries of methods that were asked for some positions alone, and parts whose rows are at others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from attrib_batch.analysis import read_summary, summarize
from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table
from tests.support.synthetic_run import Pair, write_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CELL = Cell("gpt2", "ioi", "atp")


def measured_at(at: object, stored: Sequence[Sequence[int]], tmp_path: Path) -> Path:
    """A run of a method that was asked for some positions; pairs have roles A at 1 and 2 and B at 3, of 5 tokens."""
    rng = np.random.default_rng(0)
    pairs = [
        Pair(
            index,
            {"z": rng.normal(size=(2, 3, 5)), "mlp_out": rng.normal(size=(2, 5))},
            roles={1: "A", 2: "A", 3: "B"} if positions or at == "last" else {},
            stored=positions,
        )
        for index, positions in enumerate(stored)
    ]
    return write_run(tmp_path, {CELL: pairs}, cuts=(1,), method={"kind": "exact", "at": at})


def test_a_method_at_the_last_position_has_means_there_alone(tmp_path: Path) -> None:
    out = measured_at("last", [[4], [4], [4]], tmp_path)
    summarize(out)
    heads, positions = read_summary(out).heads, read_summary(out).positions
    assert set(heads["scope"]) == {"last", "all"}
    assert set(positions.select("scope", "position").rows()) == {("position", 4), ("from_end", -1)}
    last, whole = (heads.filter(scope=scope).drop("scope") for scope in ("last", "all"))
    assert last.equals(whole)
    assert set(last["n_pairs"]) == {3}


def test_a_method_at_roles_has_no_means_at_the_last_position(tmp_path: Path) -> None:
    out = measured_at(["A"], [[1, 2], [], [1, 2]], tmp_path)
    summarize(out)
    heads, positions = read_summary(out).heads, read_summary(out).positions
    assert set(heads["scope"]) == {"role", "all"}, "no row at the last position is not a score of 0 there"
    assert set(heads["role"].drop_nulls()) == {"A"}
    assert set(positions["position"]) == {1, 2, -4, -3}
    assert set(heads["n_pairs"]) == set(positions["n_pairs"]) == {2}


@pytest.mark.parametrize(
    ("at", "stored", "expected"),
    [
        ("last", [[4], [3], [4]], "one row for each of its 2 pairs, at the last position"),
        ("last", [[4], [3, 4], [4]], "one row for each of its 2 pairs, at the last position"),
        (["A"], [[1, 2], [3], [1, 2]], "the same rows of a pair, at positions of A alone"),
        (["A", "B"], [[1, 2], [0], [1, 2]], "the same rows of a pair, at positions of A and B alone"),
        ("all", [[0, 1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]], "one row per token position"),
    ],
)
def test_rows_at_other_positions_than_were_asked_for_are_refused(
    at: object, stored: list[list[int]], expected: str, tmp_path: Path
) -> None:
    out = measured_at(at, stored, tmp_path)
    with pytest.raises(OutputError, match=f"every component, layer and head must have {expected}"):
        summarize(out)


def test_a_row_that_is_missing_for_one_head_is_refused_at_roles_too(tmp_path: Path) -> None:
    out = measured_at(["A"], [[1, 2], [1, 2], [1, 2]], tmp_path)
    store, name = Store(out), Chunk(CELL, 1, 3).path(Table.SCORES)
    rows = store.read_table(name)
    store.write_table(name, pa.concat_tables([rows.slice(0, 3), rows.slice(4)]))
    with pytest.raises(OutputError, match="the same rows of a pair"):
        summarize(out)
