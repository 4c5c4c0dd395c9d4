"""Moments: the normalised standard error, strata, and that a worker's are those of its rows."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import attrib_batch as ab
from attrib_batch.analysis import read_summary, summarize
from attrib_batch.spec import Cell
from tests.support.jobs import TinyJob
from tests.support.synthetic_run import Pair, write_run

CELL = Cell("gpt2", "ioi", "atp")
GROUPS = [1, 2, 2, None, 3, 3, 3, None, 4, 5, 5, 1]


def pairs_of(groups: list[int | None]) -> list[Pair]:
    """Pairs whose scores follow their gaps, so that the two means vary together."""
    rng = np.random.default_rng(3)
    pairs = []
    for index, group in enumerate(groups):
        gap = rng.normal(4, 1.5)
        scores = {"z": rng.normal(0.3 * gap, 0.5, size=(1, 2, 4))}
        template = f"t{index % 3}"
        pairs.append(Pair(index, scores, {3: "end"}, gap, 0.0, group, template))
    return pairs


def ratio_error(pairs: list[Pair], head: int) -> tuple[float, float]:
    """The ratio of the mean score at the last position to the mean gap, and its standard error from the residuals.

    Each unit's residual is what it adds to the linearised ratio, sum (x_i - m) / n - R sum (y_i - M) / N, over M.
    """
    x = np.array([np.float64(np.float32(pair.scores["z"][0, head, -1])) for pair in pairs])
    y = np.array([pair.clean - pair.corrupted for pair in pairs])
    ratio = x.mean() / y.mean()
    residual: dict[object, float] = defaultdict(float)
    for index, pair in enumerate(pairs):
        unit = ("pair", pair.pair_id) if pair.group is None else ("group", pair.group)
        residual[unit] += ((x[index] - x.mean()) - ratio * (y[index] - y.mean())) / (len(pairs) * y.mean())
    units = len(residual)
    return ratio, math.sqrt(units / (units - 1) * math.fsum(value**2 for value in residual.values()))


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("cuts", [(), (3, 5), tuple(range(1, 12))])
def test_the_normalised_standard_error_knows_that_the_gap_is_uncertain(
    tmp_path: Path, cuts: tuple[int, ...], *, moments: bool
) -> None:
    pairs = pairs_of(GROUPS)
    summarize(write_run(tmp_path, {CELL: pairs}, cuts=cuts, moments=moments))
    for row in read_summary(tmp_path).heads.filter(scope="last").iter_rows(named=True):
        mean, sem = ratio_error(pairs, row["head"])
        assert row["mean_normalized"] == pytest.approx(mean, rel=1e-9)
        assert row["sem_normalized"] == pytest.approx(sem, rel=1e-9)


@pytest.mark.parametrize("moments", [False, True])
def test_strata_are_the_pairs_of_one_template(tmp_path: Path, *, moments: bool) -> None:
    pairs = pairs_of([None] * 12)
    summarize(write_run(tmp_path, {CELL: pairs}, cuts=(5,), moments=moments))
    strata = read_summary(tmp_path).strata
    assert set(strata["kind"]) == {"template"}
    assert set(strata["stratum"]) == {"t0", "t1", "t2"}
    for row in strata.filter(scope="all").iter_rows(named=True):
        values = [
            float(pair.scores["z"][0, row["head"]].astype(np.float32).astype(np.float64).sum())
            for pair in pairs
            if pair.template == row["stratum"]
        ]
        assert row["n_pairs"] == len(values)
        assert row["mean"] == pytest.approx(np.mean(values), rel=1e-9)
        assert row["sem"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-9)
        assert row["share_positive"] == sum(value > 0 for value in values) / len(values)


@pytest.mark.parametrize("cuts", [(), (4,), (1, 2, 3, 7)])
def test_rows_in_another_order_give_the_same(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Another program may have written a part again."""
    pairs = pairs_of(GROUPS)
    before = write_run(tmp_path / "before", {CELL: pairs}, cuts=cuts)
    after = Path(shutil.copytree(before, tmp_path / "after"))
    for path in after.glob("scores/**/*.parquet"):
        pl.read_parquet(path).sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    for out in (before, after):
        summarize(out)
    for name in ("heads", "positions", "strata"):
        assert_frame_equal(
            getattr(read_summary(after), name), getattr(read_summary(before), name), abs_tol=1e-9, rel_tol=1e-9
        )


def test_what_a_worker_commits_is_what_its_rows_say(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path / "job", n_pairs=24)
    methods = [
        {"id": "atp", "components": ["z", "k", "mlp_out"]},
        {"id": "exact", "components": ["z"], "at": "last"},
    ]
    run = ab.load_job(job.write(methods=methods, chunk_pairs=5)).run(tmp_path / "out", progress=False)
    committed = run.heads(), run.positions()
    assert list((tmp_path / "out/moments").glob("**/*.parquet"))
    for table in ("moments", "strata"):
        shutil.rmtree(tmp_path / "out" / table)
    summarize(tmp_path / "out")
    again = ab.open_run(tmp_path / "out")
    for now, then in zip((again.heads(), again.positions()), committed, strict=True):
        assert len(now) > 0
        assert_frame_equal(now, then, abs_tol=1e-9, rel_tol=1e-9)
