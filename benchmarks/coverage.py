"""``python -m benchmarks.coverage``: how often nominal 95 % intervals hold the truth, in simulated samples.

Pairs come in units of two that are correlated (a pair and its mirror). Every simulated sample is one key of the
package's own functions, so that what is measured is what `summarize` writes.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.intervals import add_inference
from attrib_batch.analysis.statistics.moments import KEYS
from attrib_batch.analysis.statistics.resampling import draw_counts
from attrib_batch.analysis.statistics.studentised import UnitGaps, UnitSums, studentised_quantiles
from attrib_batch.analysis.statistics.units import ENOUGH_UNITS, QUANTILES, RESAMPLES
from benchmarks import machine
from benchmarks.page import RESULTS, replace_part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNITS = (20, 100, 1000)
CORRELATION = 0.5
"""Of the two pairs of a unit, before they are made skewed."""
GAP = 4.0
"""The true mean gap; its standard deviation is 1.5."""


@dataclass(frozen=True)
class Scores:
    """A distribution of scores."""

    name: str
    mean: float
    of_normal: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Makes scores of standard normal values and of uniform ones of the same shape."""


def _exponential(normal: np.ndarray) -> np.ndarray:
    from scipy.special import log_ndtr

    return -log_ndtr(-normal)


DISTRIBUTIONS = (
    Scores("normal", 0.0, lambda normal, _: normal),
    Scores("exponential", 1.0, lambda normal, _: _exponential(normal)),
    Scores("log-normal, sigma 0.5", np.exp(0.125), lambda normal, _: np.exp(0.5 * normal)),
    Scores("60 % zeros, others exponential", 0.4, lambda normal, u: np.where(u < 0.6, 0.0, _exponential(normal))),
)


@dataclass(frozen=True)
class Covered:
    """Shares of samples, 0 to 1."""

    mean: float
    """Those whose interval of the mean holds the true mean."""
    ratio: float
    """Those whose interval of the mean divided by the mean gap holds the true ratio."""
    mean_t: float
    """Likewise for the mean, with t intervals alone."""
    ratio_t: float
    rejected: float
    """Those whose p-value is below 0.05 where the true mean is 0."""


def simulate(
    scores: Scores, n_units: int, samples: int, *, follow: float = 0.0, seed: int = 0, resamples: int = RESAMPLES
) -> Covered:
    """Draw samples, and see how often the intervals hold the truth.

    Args:
        scores: how scores are distributed.
        n_units: units of a sample, of two pairs each.
        samples: how many samples.
        follow: what is added to the score of a pair for every unit of its gap above the mean gap.
        seed: of the samples.
        resamples: of the bootstrap, where there are few units.
    """
    rng = np.random.default_rng(seed)
    shape = (samples, n_units, 2)
    gaps = GAP + 1.5 * _correlated(rng, shape)
    values = scores.of_normal(_correlated(rng, shape), rng.random(shape)) + follow * (gaps - GAP)
    x, y = values.sum(axis=2), gaps.sum(axis=2)
    rows = _statistics(x, y)
    quantiles = _quantiles(x, y, resamples) if n_units < ENOUGH_UNITS else None
    null = rows.with_columns(mean=pl.col("mean") - scores.mean)
    found, of_t = (add_inference(rows, given, magnitudes=False) for given in (quantiles, None))
    ratio = scores.mean / GAP
    return Covered(
        _share(found, "", scores.mean),
        _share(found, "_normalized", ratio),
        _share(of_t, "", scores.mean),
        _share(of_t, "_normalized", ratio),
        float((add_inference(null, quantiles, magnitudes=False).get_column("p_value") < 0.05).mean()),  # type: ignore[arg-type]
    )


def _correlated(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw standard normal values, correlated within units."""
    shared = rng.normal(size=(*shape[:2], 1))
    return np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * rng.normal(size=shape)


def _statistics(x: np.ndarray, y: np.ndarray) -> pl.DataFrame:
    """Compute what summaries hold of each sample, from sums over units of two pairs, (sample, unit)."""
    samples, n_units = x.shape
    mean, gap = x.mean(axis=1) / 2, y.mean(axis=1) / 2
    ratio = mean / gap
    d, e = x - 2 * mean[:, None], y - 2 * gap[:, None]

    def error(sums: np.ndarray) -> np.ndarray:
        return np.sqrt(n_units / (n_units - 1) * (sums**2).sum(axis=1)) / (2 * n_units)

    keys = pl.DataFrame({"position": np.arange(samples, dtype=np.int32)}).select(
        component=pl.lit("z"), scope=pl.lit("last"), role=pl.lit(None, pl.String), layer=pl.lit(0, pl.Int16),
        head=pl.lit(None, pl.Int16), position="position",
    )  # fmt: skip
    return keys.with_columns(
        n_groups=pl.lit(n_units, pl.Int64),
        mean=pl.Series(mean),
        sem=pl.Series(error(d)),
        mean_normalized=pl.Series(ratio),
        sem_normalized=pl.Series(error(d - ratio[:, None] * e) / np.abs(gap)),
    )


def _quantiles(x: np.ndarray, y: np.ndarray, resamples: int) -> pl.DataFrame:
    """Compute the quantiles of studentised errors of each sample, each with a gap of its own."""
    n_units = x.shape[1]
    counts = draw_counts(n_units, resamples, 0)[1:]
    two = np.full(n_units, 2.0)
    found = [
        studentised_quantiles(UnitSums(two, one[:, None]), UnitGaps(two, gap), counts)
        for one, gap in zip(x, y, strict=True)
    ]
    columns = {name: np.concatenate([getattr(each, name) for each in found]) for name in QUANTILES}
    keys = _statistics(x[:, :2], y[:, :2]).select(KEYS)
    return keys.hstack([pl.Series(name, values, nan_to_null=True) for name, values in columns.items()])


def _share(rows: pl.DataFrame, of: str, truth: float) -> float:
    return float(rows.select((pl.col(f"low{of}") <= truth) & (pl.col(f"high{of}") >= truth)).to_series().mean())  # type: ignore[arg-type]


def render(where: str, found: Sequence[tuple[str, int, Covered, Covered]], samples: int, seconds: float) -> str:
    """The part of the page about intervals."""
    rows = [
        f"| {name} | {units:,} | {apart.mean:.3f} ({apart.mean_t:.3f}) | {apart.ratio:.3f} ({apart.ratio_t:.3f}) | "
        f"{tied.ratio:.3f} ({tied.ratio_t:.3f}) | {apart.rejected:.3f} |"
        for name, units, apart, tied in found
    ]
    shares = [share for _, _, apart, tied in found for share in (apart.mean, apart.ratio, tied.ratio)]
    return (
        f"## (k) What 95 % intervals cover\n\nWritten by `python -m benchmarks.coverage` in {seconds:.0f} s. "
        f"{where}\n\n"
        f"{samples:,} simulated samples a row, pairs in units of 2 (correlation {CORRELATION} before skewing), gap 4 "
        "with standard deviation 1.5. The share of intervals that hold the truth, in parentheses that of t intervals; "
        f"under {ENOUGH_UNITS} units the intervals are bootstrap-t. Scores that follow gaps have 0.3 of a pair's gap "
        "added. The last column is the share of p-values below 0.05 where the true mean is 0. Target 0.93 to 0.97; "
        f"**{min(shares):.3f} to {max(shares):.3f}** here, with a standard error of "
        f"{np.sqrt(0.95 * 0.05 / samples):.3f}.\n\n"
        "| scores | units | mean | ratio | ratio, scores follow gaps | p < 0.05 |\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def main() -> int:
    """Simulate, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="simulated samples a row")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    started = time.perf_counter()
    found = [
        (
            scores.name,
            units,
            simulate(scores, units, options.samples),
            simulate(scores, units, options.samples, follow=0.3, seed=1),
        )
        for scores in DISTRIBUTIONS
        for units in UNITS
    ]
    text = render(machine.describe(), found, options.samples, time.perf_counter() - started)
    replace_part(options.out, "coverage", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
