"""``python -m benchmarks.calibration``: what calibrated means are worth, and whether their intervals hold the truth.

On the bundled model: 2,000 pairs of indirect object identification are estimated by attribution patching, 64 of them,
drawn at random, are measured as well, at the last position. In simulated samples, and in resamples of pairs that were
all measured: how often nominal 95 % intervals hold the true mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.calibration import Everything, Sampled, calibrate
from attrib_batch.analysis.statistics.moments import t_quantile
from benchmarks import machine
from benchmarks.page import RESULTS, replace_part, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attrib_batch import Run

Draw = tuple[np.ndarray, np.ndarray]
"""Exact effects and estimates of pairs, both of the same shape."""

STRONGEST = 20
TINY_PAIRS = 1000
_BLOCK = 500


@dataclass(frozen=True)
class Relation:
    """How estimates follow exact effects."""

    name: str
    truth: float
    """The mean exact effect."""
    draw: Callable[[np.random.Generator, tuple[int, int]], Draw]


def _correlated(correlation: float) -> Callable[[np.random.Generator, tuple[int, int]], Draw]:
    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Draw:
        estimate = rng.normal(size=shape)
        noise = np.sqrt(1 - correlation**2) * rng.normal(size=shape)
        return 1 + correlation * estimate + noise, 0.5 * estimate

    return draw


def _heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> Draw:
    estimate = rng.standard_t(5, size=shape)
    return estimate + 0.3 * rng.standard_t(5, size=shape), estimate


def _uneven(rng: np.random.Generator, shape: tuple[int, int]) -> Draw:
    estimate = rng.normal(0.5, 1, size=shape)
    return estimate * (1 + 0.3 * rng.normal(size=shape)), estimate


RELATIONS = (
    Relation("correlation 0.99", 1.0, _correlated(0.99)),
    Relation("correlation 0.9", 1.0, _correlated(0.9)),
    Relation("correlation 0", 1.0, _correlated(0.0)),
    Relation("heavy tails", 0.0, _heavy_tailed),
    Relation("error that grows with the estimate", 0.5, _uneven),
)


@dataclass(frozen=True)
class Found:
    """What intervals of many samples are like."""

    covered: float
    """The share that hold the truth, 0 to 1."""
    covered_alone: float
    """Likewise for the t interval of the sample's exact effects alone."""
    width: float
    """The median width as a share of that of the sample's own interval."""


def simulate(relation: Relation, *, n: int, n_all: int, samples: int, seed: int = 0) -> Found:
    """Draw samples of ``n`` measured among ``n_all`` estimated pairs; each sample is one key of the package's own."""
    rng = np.random.default_rng(seed)
    pieces = []
    for start in range(0, samples, _BLOCK):
        drawn = relation.draw(rng, (n_all, min(_BLOCK, samples - start)))
        pieces.append(_intervals(*drawn, n))
    return _found(np.concatenate(pieces, axis=1), np.full(samples, relation.truth))


def resample(exact: np.ndarray, estimate: np.ndarray, *, n: int, n_all: int, samples: int, seed: int = 0) -> Found:
    """Draw samples of pairs, with replacement, from pairs that were all measured; arrays of shape (pair, head)."""
    rng = np.random.default_rng(seed)
    pieces = []
    for _ in range(samples):
        chosen = rng.integers(0, len(exact), n_all)
        pieces.append(_intervals(exact[chosen], estimate[chosen], n))
    return _found(np.concatenate(pieces, axis=1), np.tile(exact.mean(axis=0), samples))


def _intervals(exact: np.ndarray, estimate: np.ndarray, n: int) -> np.ndarray:
    """Return both ends of the calibrated intervals, then of the sample's own; (4, key)."""
    n_all = len(estimate)
    everything = Everything(n_all, n_all, estimate.mean(axis=0), estimate.std(axis=0, ddof=1) / np.sqrt(n_all))
    found = calibrate(Sampled(np.ones(n), exact[:n], estimate[:n]), everything)
    if found is None:
        raise ValueError(f"{n} pairs are too few to calibrate with")
    half = t_quantile(np.array(n)) * exact[:n].std(axis=0, ddof=1) / np.sqrt(n)
    alone = exact[:n].mean(axis=0)
    return np.stack([found.low, found.high, alone - half, alone + half])


def _found(ends: np.ndarray, truth: np.ndarray) -> Found:
    low, high, low_alone, high_alone = ends
    return Found(
        float(np.mean((low <= truth) & (truth <= high))),
        float(np.mean((low_alone <= truth) & (truth <= high_alone))),
        float(np.median((high - low) / (high_alone - low_alone))),
    )


def measured_everywhere(folder: Path, n_pairs: int) -> Draw:
    """Estimate and measure pairs on a tiny model at the last position; both of shape (pair, head), float64."""
    from attrib_batch import attribute
    from tests.support.jobs import TinyJob

    job = TinyJob.make(folder, n_pairs=n_pairs)
    methods = ["atp", {"id": "exact", "kind": "exact", "at": "last"}]
    run = attribute(str(job.model), job.pairs, methods, out=folder / "out", name="tiny", progress=False)
    last = run.baselines(method="atp").select("pair_id", position=pl.col("n_tokens") - 1)
    exact, estimate = (
        run.scores(method=method)
        .join(last, on=["pair_id", "position"])
        .sort("pair_id", "layer", "head")
        .collect()
        .get_column("score")
        .to_numpy()
        .reshape(n_pairs, -1)
        .astype(np.float64)
        for method in ("exact", "atp")
    )
    return exact, estimate


def measure(n_all: int, n: int, folder: Path) -> Run:
    """Estimate pairs on the bundled model, and measure some of them at the last position."""
    from attrib_batch import attribute
    from attrib_batch.pairs.making.ioi import generate_ioi
    from attrib_batch.pairs.making.writer import write_pairs

    pairs = folder / "ioi.parquet"
    write_pairs(pairs, generate_ioi(n_all, 0))
    run = attribute("smollm2-135m", pairs, ["atp"], out=folder / "run", progress=False)
    run.verify(n, at="last", progress=False)
    return run


def widths(run: Run) -> pl.DataFrame:
    """Of the strongest heads at the last position, by their calibrated means: both widths, and what they are worth."""
    measured = Path(run.path) / "verification" / "scores"
    groups = run.baselines().select("pair_id", "group").collect()
    exact = pl.read_parquet(measured / "**/*.parquet").join(groups, on="pair_id")
    unit = pl.coalesce("group", -1 - pl.col("pair_id"))
    n, n_units = exact.get_column("pair_id").n_unique(), exact.select(unit.n_unique()).item()
    key = ["layer", "head"]
    score = pl.col("score").cast(pl.Float64)
    scale = 2 * float(t_quantile(np.array(n_units))) * np.sqrt(n_units / (n_units - 1)) / n
    own = (
        exact.with_columns(score - score.mean().over(key))
        .group_by(*key, unit.alias("unit"))
        .agg(pl.col("score").sum())
        .group_by(key)
        .agg(own=scale * (pl.col("score") ** 2).sum().sqrt())
    )
    heads = run.heads().filter(scope="last").sort(pl.col("calibrated_mean").abs(), descending=True).head(STRONGEST)
    return heads.join(own, on=key).with_columns(width=pl.col("calibrated_high") - pl.col("calibrated_low"))


def main() -> int:
    """Simulate, measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs that are estimated")
    parser.add_argument("--measured", type=int, default=64, help="pairs of them that are measured as well")
    parser.add_argument("--samples", type=int, default=4000, help="simulated samples a row")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    started = time.perf_counter()
    simulated = [
        (relation.name, n, simulate(relation, n=n, n_all=2000, samples=options.samples))
        for relation in RELATIONS
        for n in (16, 32, 64, 200)
    ]
    with tempfile.TemporaryDirectory() as folder:
        exact, estimate = measured_everywhere(Path(folder), TINY_PAIRS)
        simulated += [
            (f"{TINY_PAIRS:,} pairs of a tiny model", n, resample(exact, estimate, n=n, n_all=400, samples=2000))
            for n in (16, 32, 64)
        ]
    with tempfile.TemporaryDirectory() as folder:
        found = widths(measure(options.pairs, options.measured, Path(folder)))
    text = render(machine.describe(), simulated, found, options, time.perf_counter() - started)
    replace_part(options.out, "calibration", text)
    print(text)
    return 0


def render(
    where: str,
    simulated: Sequence[tuple[str, int, Found]],
    found: pl.DataFrame,
    options: argparse.Namespace,
    seconds: float,
) -> str:
    """The part of the page about calibrated means."""
    share = found.select(pl.col("width") / pl.col("own")).to_series()
    worth = found.get_column("effective_pairs")
    rows = [
        [name, f"{n:,}", f"{one.covered:.3f}", f"{one.covered_alone:.3f}", f"{one.width:.2f}"]
        for name, n, one in simulated
    ]
    return (
        f"## (n) Calibrated means\n\nWritten by `python -m benchmarks.calibration` in {seconds:.0f} s. {where}\n\n"
        f"SmolLM2-135M, `z` at the last position, {options.pairs:,} IOI pairs estimated by `atp`, {options.measured} "
        f"of them measured (sampled with their mirrors): over the {STRONGEST} strongest heads the calibrated interval "
        f"has a median width of **{share.median():.2f}** of the sample's own ({share.min():.2f} to {share.max():.2f}; "
        f"target 0.3); it is worth a median of **{worth.median():,.0f}** measured pairs ({worth.min():,.0f} to "
        f"{worth.max():,.0f}).\n\n"
        f"{options.samples:,} simulated samples a row, 2,000 estimated pairs each; below, resamples of 400 from pairs "
        "that were all measured, on a tiny random model at the last position. Target 0.94 to 0.965 at 64 measured "
        "pairs; the standard error of a simulated share is "
        f"{np.sqrt(0.95 * 0.05 / options.samples):.3f}.\n\n"
        + table(["estimates", "measured", "calibrated", "t interval of the sample", "width"], rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
