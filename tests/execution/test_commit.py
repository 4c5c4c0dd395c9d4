"""Committing a chunk again: the same tables, and never a pair in neither or both of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attrib_batch.execution.commit import commit_chunk, commit_given_up, failure_row
from attrib_batch.execution.scheduling.assignment import LeftOut
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import BASELINES, FAILURES, MOMENTS, PROMPTS, SCORES, STRATA, Chunk, Table
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import in_words

CHUNK = Chunk(Cell("m", "d", "atp"), 4, 8)


def commit(store: Store, scored: set[int], failed: set[int]) -> None:
    scores = [
        {"pair_id": pair, "component": "z", "layer": 0, "head": 0, "position": 0, "role": None, "score": 1.0}
        for pair in sorted(scored)
    ]
    baselines = [
        {
            "pair_id": pair, "n_tokens": 9, "first_difference": 4, "clean_metric": 1.0, "corrupted_metric": 0.0,
            "template": None, "group": None,
        }
        for pair in sorted(scored)
    ]  # fmt: skip
    prompts = [
        {"pair_id": pair, "clean_tokens": ["a"], "corrupted_tokens": ["b"], "task": None} for pair in sorted(scored)
    ]
    failures = [failure_row(pair, "score", "non_finite", "x", attempts=1) for pair in sorted(failed)]
    commit_chunk(
        store,
        CHUNK,
        scores=pa.Table.from_pylist(scores, schema=SCORES),
        baselines=pa.Table.from_pylist(baselines, schema=BASELINES),
        failures=pa.Table.from_pylist(failures, schema=FAILURES),
        moments=MOMENTS.empty_table(),
        strata=STRATA.empty_table(),
        prompts=pa.Table.from_pylist(prompts, schema=PROMPTS),
    )


def ids(store: Store, table: Table) -> set[int]:
    path = store.path(CHUNK.path(table))
    return set(pq.read_table(path)["pair_id"].to_pylist()) if path.exists() else set()


class Watched(Store):
    """A store in which a committed chunk is complete at every moment."""

    def check(self) -> None:
        if self.exists(CHUNK.path(Table.SCORES)):
            scored, failed = ids(self, Table.SCORES), ids(self, Table.FAILURES)
            assert not scored & failed
            assert scored | failed == {4, 5, 6, 7}
            assert ids(self, Table.BASELINES) >= scored
            assert ids(self, Table.PROMPTS) >= scored

    def write_bytes(self, relative: str, data: bytes | pa.Buffer) -> int:
        size = super().write_bytes(relative, data)
        self.check()
        return size

    def remove(self, relative: str) -> None:
        super().remove(relative)
        self.check()


@pytest.mark.parametrize("before", [set(), {5}, {4, 5, 6, 7}], ids=str)
@pytest.mark.parametrize("after", [set(), {5}, {6}, {4, 5, 6, 7}], ids=str)
def test_a_chunk_that_is_committed_again_is_complete_at_every_moment(
    before: set[int], after: set[int], tmp_path: Path
) -> None:
    store = Watched(tmp_path)
    for failed in (before, after):
        commit(store, {4, 5, 6, 7} - failed, failed)
    assert ids(store, Table.FAILURES) == after
    for table in (Table.SCORES, Table.BASELINES, Table.PROMPTS):
        assert ids(store, table) == {4, 5, 6, 7} - after


def test_the_same_outcome_again_never_takes_a_chunk_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    commit(store, {4, 6, 7}, {5})
    monkeypatch.setattr(Store, "remove", lambda *_: pytest.fail("a worker that is out of reach could die here"))
    commit(store, {4, 6, 7}, {5})


def test_a_chunk_that_is_given_up_says_of_each_pair_why(tmp_path: Path) -> None:
    store, pairs = Store(tmp_path), in_words(random_pairs(4, 9, 4), first_id=100)
    commit_given_up(store, CHUNK, pairs, [LeftOut(row, 3, f"segfault at {row}") for row in range(4, 8)])
    rows = pq.read_table(store.path(CHUNK.path(Table.FAILURES))).to_pylist()
    assert [(row["pair_id"], row["message"], row["attempts"]) for row in rows] == [
        (100 + index, f"segfault at {4 + index}", 3) for index in range(4)
    ]
    assert {(row["stage"], row["error"]) for row in rows} == {("worker", "worker_lost")}
    assert pq.read_table(store.path(CHUNK.path(Table.SCORES))).num_rows == 0
    assert pq.read_table(store.path(CHUNK.path(Table.PROMPTS))).equals(PROMPTS.empty_table())
