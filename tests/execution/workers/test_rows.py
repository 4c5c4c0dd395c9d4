"""The rows of a chunk: schema, order, zeros before the first difference, roles and null heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.execution.commit import commit_chunk, failure_rows
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.rows import (
    baseline_rows,
    measured_rows,
    moment_pieces,
    moment_rows,
    prompt_rows,
)
from attrib_batch.execution.workers.score_rows import ScoreParts, score_rows
from attrib_batch.execution.workers.task import TaskResults
from attrib_batch.spec import Cell, Component, parse_spec
from attrib_batch.storage.parquet import FAST, encode_parquet, join_parquet
from attrib_batch.storage.store import Store
from attrib_batch.tables import BASELINES, FAILURES, MEASURED, PROMPTS, SCORES, Chunk, Table
from tests.support.demo_pairs import random_pairs
from tests.support.scored import encoded

N_LAYERS, N_HEADS = 2, 3


def batch(length: int, first: int, ids: list[int]) -> ScoredBatch:
    pairs = [
        replace(pair, pair_id=pair_id, roles=("A", *[None] * (length - 2), "end"), template=f"t{pair_id % 2}", task="x")
        for pair, pair_id in zip(encoded(random_pairs(len(ids), length, first)), ids, strict=True)
    ]
    source = np.random.default_rng(length)
    shape = (len(ids), N_LAYERS, N_HEADS, length - first)
    scores = {
        Component.Z: source.normal(size=shape).astype(np.float32),
        Component.MLP_OUT: source.normal(size=(shape[0], shape[1], 1, shape[3])).astype(np.float32),
    }
    metrics = source.normal(size=(2, len(ids)))
    return ScoredBatch(pairs, BatchScores(scores, *metrics))


def test_every_score_stands_in_its_row() -> None:
    batches = [batch(6, 2, [7, 3]), batch(4, 1, [5])]
    table = score_rows(batches)
    assert table.schema.equals(SCORES)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    expected = {
        (pair.pair_id, str(component), layer, head if component.has_heads else None, position): (
            0.0 if position < pair.first_difference else values[i, layer, head, position - pair.first_difference]
        )
        for b in batches
        for component, values in b.result.scores.items()
        for i, pair in enumerate(b.pairs)
        for layer in range(N_LAYERS)
        for head in range(values.shape[2])
        for position in range(pair.n_tokens)
    }
    found = {tuple(row[:5]): row[5] for row in frame.select(pl.exclude("role", "score"), "score").iter_rows()}
    assert len(found) == frame.height == len(expected)
    assert found.keys() == expected.keys()
    assert all(found[key] == np.float32(value) for key, value in expected.items())
    assert frame["pair_id"].is_sorted()
    roles = frame.filter(pl.col("pair_id") == 7).group_by("position").agg(pl.col("role").cast(pl.String).unique())
    assert dict(roles.sort("position").iter_rows()) == {
        0: ["A"], 1: [None], 2: [None], 3: [None], 4: [None], 5: ["end"],
    }  # fmt: skip


def test_nothing_scored_still_commits_empty_tables_of_the_schema(tmp_path: Path) -> None:
    store, chunk = Store(tmp_path), Chunk(Cell("m", "d", "k"), 0, 4)
    failure = {"pair_id": 1, "stage": "score", "error": "non_finite", "message": "x", "attempts": 1}
    moments, strata = moment_rows([])
    tables = {"scores": score_rows([]), "baselines": baseline_rows([]), "moments": moments, "strata": strata}
    tables["prompts"] = prompt_rows([], {})
    commit_chunk(store, chunk, **tables, failures=failure_rows([failure]))
    for table, schema in (
        (Table.SCORES, SCORES), (Table.BASELINES, BASELINES), (Table.FAILURES, FAILURES), (Table.PROMPTS, PROMPTS),
    ):  # fmt: skip
        assert pq.read_schema(store.path(chunk.path(table))).equals(schema)
    # What an attempt without failures leaves must not keep those of an attempt before it.
    commit_chunk(store, chunk, **tables, failures=failure_rows([]))
    assert not store.exists(chunk.path(Table.FAILURES))


def test_positions_beyond_16_bits() -> None:
    length = 33_000
    whole = batch(length, length - 2, [1])
    frame = pl.from_arrow(score_rows([whole]))
    assert isinstance(frame, pl.DataFrame)
    last = frame.filter(pl.col("role") == "end")
    assert last["position"].unique().to_list() == [length - 1]
    assert frame["position"].min() == 0
    assert frame["position"].n_unique() == length
    assert (last["score"] != 0).all()


def test_positions_that_were_not_asked_for_have_no_row() -> None:
    whole = batch(6, 2, [7, 3, 5])
    positions = np.array([[0, 5], [4, -1], [-1, -1]])
    scores = {component: values[..., :2] for component, values in whole.result.scores.items()}
    table = score_rows([replace(whole, result=replace(whole.result, scores=scores, positions=positions))])
    assert table.schema.equals(SCORES)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    found = {
        (*row[:5],): (row[5], row[6])
        for row in frame.select(pl.exclude("role", "score"), pl.col("role").cast(pl.String), "score").iter_rows()
    }
    expected = {
        (pair.pair_id, str(component), layer, head if component.has_heads else None, int(position)): (
            pair.roles[position],
            values[i, layer, head, place],
        )
        for component, values in scores.items()
        for i, pair in enumerate(whole.pairs)
        for layer in range(N_LAYERS)
        for head in range(values.shape[2])
        for place, position in enumerate(positions[i])
        if position >= 0
    }
    assert found == expected
    assert len(frame) == len(expected)
    assert set(frame["pair_id"]) == {3, 7}
    assert baseline_rows([whole])["pair_id"].to_pylist() == [3, 5, 7], "a pair without a row is scored all the same"


def test_no_pair_has_a_position_that_was_asked_for() -> None:
    whole = batch(6, 2, [7, 3])
    scores = {component: values[..., :0] for component, values in whole.result.scores.items()}
    empty = replace(whole.result, scores=scores, positions=np.zeros((2, 0), dtype=np.int64))
    assert empty.finite().all()
    assert score_rows([replace(whole, result=empty)]).equals(SCORES.empty_table())


def test_prompts_stand_token_by_token_in_the_order_of_ids_and_take_little_room() -> None:
    batches = [batch(9, 2, [7, 3]), batch(4, 1, [5])]
    batches[0].pairs[0] = replace(batches[0].pairs[0], task="ioi")
    texts = {token: f" t{token}" for b in batches for pair in b.pairs for token in (*pair.clean, *pair.corrupted)}
    table = prompt_rows(batches, texts)
    assert table.schema.equals(PROMPTS)
    pairs = sorted((pair for b in batches for pair in b.pairs), key=lambda pair: pair.pair_id)
    assert table.to_pylist() == [
        {
            "pair_id": pair.pair_id,
            "clean_tokens": [texts[token] for token in pair.clean],
            "corrupted_tokens": [texts[token] for token in pair.corrupted],
            "task": pair.task,
        }
        for pair in pairs
    ]
    many = pa.concat_tables([table] * 1000)
    # A token is a number in a dictionary, not its text again.
    assert "RLE_DICTIONARY" in pq.read_metadata(pa.BufferReader(encode_parquet(many))).row_group(0).column(1).encodings


def test_parts_are_whole_pairs_and_together_the_table() -> None:
    batches = [batch(6, 2, [7, 3, 9]), batch(4, 1, [5])]
    whole = score_rows(batches)
    in_pair = {3: 48, 5: 32, 7: 48, 9: 48}  # (2 layers x 3 heads + 2 layers) by position
    for part_rows, expected in ((1, [[3], [5], [7], [9]]), (80, [[3, 5], [7], [9]]), (96, [[3, 5], [7, 9]])):
        parts = ScoreParts(batches, part_rows)
        tables = [parts.table(part) for part in range(len(parts))]
        assert [table["pair_id"].unique().to_pylist() for table in tables] == expected
        assert pa.concat_tables(tables).equals(whole)
        assert parts.n_rows == whole.num_rows == sum(in_pair.values())


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_file_does_not_depend_on_how_many_threads_write_it(
    n_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attrib_batch.execution.workers.score_rows.ROW_GROUP_ROWS", 50)
    monkeypatch.setattr("attrib_batch.tables.sums._PIECE_VALUES", 10)  # each layer by itself
    batches = [batch(6, 2, [7, 3, 9]), batch(4, 1, [5])]
    spec = parse_spec(
        {
            "name": "job", "models": [{"id": "m", "prepend_bos": False}], "datasets": [{"id": "d", "path": "p"}],
            "methods": [{"id": "atp"}, {"id": "exact"}],
        },
        source="job",
    )  # fmt: skip
    task = tuple(Chunk(Cell("m", "d", method), 0, 4) for method in ("atp", "exact"))
    texts = {token: str(token) for b in batches for pair in b.pairs for token in (*pair.clean, *pair.corrupted)}
    results = TaskResults(spec, Assignment(task), [], texts, n_threads=n_threads)
    for method in results.methods:
        for scored in batches:
            results.add(method, scored)
    report = results.commit(Store(tmp_path), seconds=0.0, model_seconds=0.0)
    assert report.score_rows == 2 * score_rows(batches).num_rows
    for chunk in task:
        data = (tmp_path / chunk.path(Table.SCORES)).read_bytes()
        parts = ScoreParts(batches, 50)
        encoded_parts = [encode_parquet(parts.table(part), level=FAST) for part in range(len(parts))]
        assert data == join_parquet(encoded_parts).to_pybytes()
        assert pq.read_metadata(tmp_path / chunk.path(Table.SCORES)).num_row_groups == len(parts) == 4
        assert len(moment_pieces(batches)) == 2 * N_LAYERS
        for table, rows in zip((Table.MOMENTS, Table.STRATA), moment_rows(batches), strict=True):
            assert rows.num_rows > 0
            assert (tmp_path / chunk.path(table)).read_bytes() == encode_parquet(rows).to_pybytes()


def test_what_was_measured_stands_in_a_table_of_its_own() -> None:
    batches = [batch(6, 2, [7, 3]), batch(4, 1, [5])]
    assert measured_rows(batches) is None
    expected = {}
    refined = []
    for one in batches:
        estimates = {name: np.full_like(values, np.nan) for name, values in one.result.scores.items()}
        for index, pair in enumerate(one.pairs):
            for component, layer, head, place in ((Component.Z, 1, 2, 0), (Component.MLP_OUT, 0, 0, -1)):
                position = pair.n_tokens + place if place < 0 else pair.first_difference + place
                estimates[component][index, layer, head, place] = pair.pair_id / 4
                key = pair.pair_id, str(component), layer, head if component.has_heads else None, position
                expected[key] = (pair.roles[position], pair.pair_id / 4)
        refined.append(replace(one, result=replace(one.result, estimates=estimates)))
    table = measured_rows(refined)
    assert table is not None
    assert table.schema.equals(MEASURED)
    rows = table.to_pylist()
    keys = [tuple(row[name] for name in ("pair_id", "component", "layer", "head", "position")) for row in rows]
    assert keys == sorted(keys, key=lambda key: (key[0], key[1]))
    assert {key: (row["role"], row["estimate"]) for key, row in zip(keys, rows, strict=True)} == expected


def test_moments_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch(6, 2, [7, 3, 9]), batch(4, 1, [5])]
    whole = moment_rows(batches)
    assert len(moment_pieces(batches)) == 2
    monkeypatch.setattr("attrib_batch.tables.sums._PIECE_VALUES", 10)
    assert len(moment_pieces(batches)) == 2 * N_LAYERS
    for cut, table in zip(moment_rows(batches), whole, strict=True):
        assert cut.equals(table)
