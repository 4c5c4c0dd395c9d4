"""A sweep that grows in its directory: what is missing is computed, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attrib_batch.analysis import scan_scores
from tests.support.jobs import TinyJob, attrib_batch_here, read_table
from tests.support.same_tables import Tables, assert_same_numbers

N_PAIRS = 24
HALF = N_PAIRS // 2


@pytest.fixture
def job(tmp_path: Path) -> TinyJob:
    return TinyJob.make(tmp_path, n_pairs=N_PAIRS)


def models(job: TinyJob, *names: str) -> list[dict[str, Any]]:
    return [{"id": str(job.model), "name": name, "prepend_bos": False} for name in names]


def dataset(job: TinyJob, name: str = "random", limit: int | None = HALF) -> dict[str, Any]:
    return {"id": name, "path": str(job.pairs), "limit": limit}


def run(job: TinyJob, out: Path, **changes: Any) -> int:
    """Run a job to its end; return how many pairs this execution scored, by the record that it left."""
    ended = attrib_batch_here("run", job.write(**{"datasets": [dataset(job)], **changes}), "--out", out)
    assert ended.code == 0, ended.said
    newest = max(out.glob("executions/*.json"), key=lambda path: path.stat().st_mtime_ns)
    return int(json.loads(newest.read_text())["pairs_scored"])


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("scores/**/*.parquet")}


ADDITIONS: dict[str, tuple[Any, int]] = {
    "a model": (lambda job: {"models": models(job, "tiny", "other")}, HALF),
    "a dataset": (lambda job: {"datasets": [dataset(job), dataset(job, "again", 4)]}, 4),
    "a method": (lambda _job: {"methods": [{"id": "atp"}, {"id": "atp_ig"}]}, HALF),
    "more pairs": (lambda job: {"datasets": [dataset(job, limit=None)]}, N_PAIRS - HALF),
    "all of it": (
        lambda job: {
            "models": models(job, "tiny", "other"),
            "datasets": [dataset(job, limit=None), dataset(job, "again", 4)],
            "methods": [{"id": "atp"}, {"id": "noise", "kind": "atp", "direction": "noise"}],
        },
        2 * 2 * (N_PAIRS + 4) - HALF,
    ),
    "nothing": (lambda _job: {}, 0),
    "only what is new": (lambda job: {"models": models(job, "other"), "methods": [{"id": "atp_ig"}]}, HALF),
}


@pytest.mark.parametrize("what", ADDITIONS)
def test_only_what_is_missing_is_computed(what: str, job: TinyJob, tmp_path: Path) -> None:
    added, n_missing = ADDITIONS[what]
    out = tmp_path / "out"
    assert run(job, out) == HALF
    before = stamps(out)
    assert run(job, out, **added(job)) == n_missing
    after = stamps(out)
    assert {path: after[path] for path in before} == before, "what was committed is not touched"
    assert run(job, out, **added(job)) == 0
    status = attrib_batch_here("status", out)
    assert status.code == 0, "all that the directory was asked for is there"


@pytest.mark.slow
def test_a_grown_sweep_is_the_sweep_that_was_asked_for_at_once(job: TinyJob, tmp_path: Path) -> None:
    whole = {
        "models": models(job, "tiny", "other"),
        "datasets": [dataset(job, limit=None)],
        "methods": [{"id": "atp"}, {"id": "noise", "kind": "atp", "direction": "noise"}],
    }
    grown, at_once = tmp_path / "grown", tmp_path / "at-once"
    run(job, grown)
    run(job, grown, models=whole["models"])
    run(job, grown, **whole)
    run(job, at_once, **whole)
    assert_same_numbers(Tables.read(grown), Tables.read(at_once))
    assert scan_scores(grown).collect().height == scan_scores(at_once).collect().height
    for verb in ("summarize", "report"):
        assert attrib_batch_here(verb, grown).code == 0


def test_a_sweep_that_grows_with_failures_counts_them_once(job: TinyJob, tmp_path: Path) -> None:
    import polars as pl

    pairs = pl.read_parquet(job.pairs)
    bad = pl.when(pl.col("pair_id") == 3).then(pl.lit([" no such word"])).otherwise(pl.col("answers"))
    pairs.with_columns(bad.alias("answers")).write_parquet(job.pairs)
    out = tmp_path / "out"
    for limit, scored in ((HALF, HALF - 1), (N_PAIRS, N_PAIRS - 1)):
        ended = attrib_batch_here("run", job.write(datasets=[dataset(job, limit=limit)]), "--out", out)
        assert ended.code == 3, ended.said
        assert f"{scored} of {limit} pairs scored, 1 in failures" in ended.output
    assert read_table(out, "failures")["pair_id"].to_list() == [3]


def test_a_sweep_does_not_shrink_and_a_conflict_names_what_differs(job: TinyJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job, out)
    ended = attrib_batch_here("run", job.write(datasets=[dataset(job, limit=4)]), "--out", out)
    assert ended.code == 2
    assert f"dataset random: its first {HALF} pairs were asked for, now its first 4" in ended.said
    other = [{"id": str(job.model), "name": "tiny", "prepend_bos": True, "dtype": "bfloat16"}]
    ended = attrib_batch_here("run", job.write(models=other), "--out", out)
    assert ended.code == 2
    assert 'model tiny, dtype: was "float32", is now "bfloat16"' in ended.said
    assert "model tiny, prepend_bos: was false, is now true" in ended.said
    assert run(job, out) == 0
