"""How often calibrated intervals hold the truth, among pairs of a real model that were all measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.calibration import TINY_PAIRS, measured_everywhere, resample


@pytest.mark.slow
def test_intervals_hold_the_mean_of_a_thousand_measured_pairs(tmp_path: Path) -> None:
    """600 samples of 12 heads: of independent ones a share of 0.95 would have a standard error of 0.0026."""
    exact, estimate = measured_everywhere(tmp_path, TINY_PAIRS)
    assert exact.std(axis=0).min() > 0
    found = resample(exact, estimate, n=64, n_all=400, samples=600)
    assert 0.94 <= found.covered <= 0.965, found
    assert found.width < 1
