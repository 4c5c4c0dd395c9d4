"""How often calibrated intervals hold the truth, among pairs of a real model that were all measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import attrib_batch as ab
from benchmarks.calibration import resample
from tests.support.jobs import TinyJob

N_PAIRS = 1000


@pytest.mark.slow
def test_intervals_hold_the_mean_of_a_thousand_measured_pairs(tmp_path: Path) -> None:
    """300 samples of 12 heads: of independent ones a share of 0.95 would have a standard error of 0.0036."""
    job = TinyJob.make(tmp_path, n_pairs=N_PAIRS)
    methods = ["atp", {"id": "exact", "kind": "exact", "at": "last"}]
    run = ab.attribute(str(job.model), job.pairs, methods, out=tmp_path / "out", name="tiny", progress=False)
    last = run.baselines(method="atp").select("pair_id", position=pl.col("n_tokens") - 1)
    exact, estimate = (
        run.scores(method=method)
        .join(last, on=["pair_id", "position"])
        .sort("pair_id", "layer", "head")
        .collect()
        .get_column("score")
        .to_numpy()
        .reshape(N_PAIRS, -1)
        .astype(np.float64)
        for method in ("exact", "atp")
    )
    moves = exact.std(axis=0) > 0
    found = resample(exact[:, moves], estimate[:, moves], n=64, n_all=400, samples=300)
    assert 0.94 <= found.covered <= 0.965, found
    assert found.width < 1
