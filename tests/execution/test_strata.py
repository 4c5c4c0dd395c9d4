"""Strata of several chunks in one file: fewer bytes, the same summaries, whatever happens to the files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from attrib_batch.analysis import read_summary, summarize
from attrib_batch.analysis.statistics import passes
from attrib_batch.analysis.summary import Summary
from attrib_batch.execution import strata
from attrib_batch.execution.strata import join_strata
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables.strata import strata_files
from tests.support.synthetic_run import Pair, write_run

CELL = Cell("gpt2", "ioi", "atp")
N_PAIRS, CHUNK = 24, 4


def some_run(out: Path) -> Path:
    """Six chunks; templates that not every chunk has, groups inside chunks and across them."""
    rng = np.random.default_rng(5)
    pairs = [
        Pair(
            index,
            {"z": rng.normal(0.2, 1, size=(2, 3, 4)), "mlp_out": rng.normal(size=(2, 4))},
            {3: "end"},
            rng.normal(4),
            0.0,
            group=index // 2 if index % 5 else None,
            template=f"t{index % 7}",
        )
        for index in range(N_PAIRS)
    ]
    return write_run(out, {CELL: pairs}, cuts=tuple(range(CHUNK, N_PAIRS, CHUNK)), moments=True)


def summary_of(out: Path) -> Summary:
    summarize(out)
    return read_summary(out)


def files(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "strata").rglob("*.parquet"))


def assert_same(one: Summary, other: Summary) -> None:
    for name in ("heads", "positions", "strata", "stability"):
        assert len(getattr(one, name)) > 0
        assert_frame_equal(getattr(one, name), getattr(other, name), rel_tol=1e-9, abs_tol=1e-9)


def part(start: int, stop: int) -> str:
    return f"part-{start:09d}-{stop:09d}.parquet"


def no_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note the parts whose scores are read for want of sums."""
    read: list[object] = []
    true = passes.chunk_moments
    monkeypatch.setattr(passes, "chunk_moments", lambda chunk: read.append(chunk) or true(chunk))
    return read


@pytest.mark.parametrize(
    ("joined_pairs", "expected"),
    [
        (N_PAIRS, [part(0, 24)]),
        (8, [part(0, 8), part(8, 16), part(16, 24)]),
        (20, [part(0, 20), part(20, 24)]),
    ],
)
def test_summaries_are_the_same(
    joined_pairs: int, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strata, "JOINED_PAIRS", joined_pairs)
    out = some_run(tmp_path)
    before = summary_of(out)
    assert len(files(out)) == 6
    join_strata(Store(out), [CELL])
    assert files(out) == expected
    read = no_rows_are_read(monkeypatch)
    assert_same(summary_of(out), before)
    assert not read
    written = {path: path.read_bytes() for path in (out / "strata").rglob("*.parquet")}
    join_strata(Store(out), [CELL])
    assert {path: path.read_bytes() for path in (out / "strata").rglob("*.parquet")} == written


def test_joining_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The joined file is there, and some of those that it replaces are too."""
    out = some_run(tmp_path / "out")
    before = summary_of(out)
    folder = next((out / "strata").rglob("*.parquet")).parent
    shutil.copytree(folder, tmp_path / "own")
    join_strata(Store(out), [CELL])
    for name in (part(4, 8), part(16, 20)):
        shutil.copy2(tmp_path / "own" / name, folder / name)
    read = no_rows_are_read(monkeypatch)
    assert_same(summary_of(out), before)
    join_strata(Store(out), [CELL])
    assert files(out) == [part(0, 24)]
    assert_same(summary_of(out), before)
    assert not read


def test_a_chunk_that_was_computed_again_counts_as_it_is_now(tmp_path: Path) -> None:
    """What is joined holds what it was: it is left aside, and what no file holds any more comes from scores."""
    out, other = some_run(tmp_path / "out"), some_run(tmp_path / "other")
    join_strata(Store(out), [CELL])
    rng = np.random.default_rng(9)
    again = [
        Pair(index, {"z": rng.normal(size=(2, 3, 4)), "mlp_out": rng.normal(size=(2, 4))}, {3: "end"}, 5.0, 0.0,
             template="t1")
        for index in range(4, 8)
    ]  # fmt: skip
    write_again(other, again)
    before = summary_of(other)
    write_again(out, again)
    later = (out / "strata").rglob(part(4, 8)).__next__()
    joined = later.with_name(part(0, 24)).stat().st_mtime_ns
    os.utime(later, ns=(joined + 1, joined + 1))
    assert_same(summary_of(out), before)
    join_strata(Store(out), [CELL])
    assert files(out) == [part(4, 8)]
    assert_same(summary_of(out), before)


def write_again(out: Path, pairs: list[Pair]) -> None:
    from attrib_batch.spec.positions import ALL
    from attrib_batch.tables import Chunk
    from tests.support.synthetic_run import write_chunk

    write_chunk(out, Chunk(CELL, pairs[0].pair_id, pairs[-1].pair_id + 1), pairs, at=ALL)


def test_a_file_that_a_driver_has_just_joined_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = some_run(tmp_path)
    before = summary_of(out)
    own = next((out / "strata").rglob(part(8, 12)))
    true = passes.read_ahead

    def late(*arguments: object) -> object:
        own.unlink()
        return true(*arguments)

    monkeypatch.setattr(passes, "read_ahead", late)
    assert_same(summary_of(out), before)


def test_which_file_holds_the_strata_of_a_chunk() -> None:
    chunks = [(0, 4), (4, 8), (8, 12)]
    joined, first, last = (0, 12), (0, 8), (8, 12)
    assert strata_files(chunks, dict.fromkeys(chunks, 1)) == {chunk: chunk for chunk in chunks}
    assert strata_files(chunks, {joined: 1}) == dict.fromkeys(chunks, joined)
    assert strata_files(chunks, {first: 1, last: 1}) == {(0, 4): first, (4, 8): first, last: last}
    # Not all chunks are there: they were joined before one was taken back.
    assert strata_files(chunks[:2], {joined: 1}) == {}
    assert strata_files([chunks[0], chunks[2]], {joined: 1, (0, 4): 1}) == {(0, 4): (0, 4)}
    # One was computed again.
    assert strata_files(chunks, {joined: 1, (4, 8): 2}) == {(4, 8): (4, 8)}
    assert strata_files(chunks, {joined: 1, (4, 8): 1}) == dict.fromkeys(chunks, joined)
