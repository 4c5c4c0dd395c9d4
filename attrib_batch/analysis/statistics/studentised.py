"""Bootstrap-t: how a studentised mean varies over resamples of units, for samples of few units.

The t interval takes the studentised error T = (mean - truth) / sem as symmetric. For skewed scores and few units it is
not: of 20 units of scores that are mostly 0 a nominal 95 % interval covers 90 %. The bootstrap-t (Efron, Tibshirani
1993, section 12.5) takes the quantiles of T from resamples of units instead, each with its own
cluster-robust error; the percentile bootstrap does not, and covers less than t. With c_g the times that unit g was
drawn, and k_g, d_g, K_g, e_g as in `attrib_batch.tables.moments`, relative to the means of the sample,

    n* = sum c k,   delta = sum c d / n*,
    q* = sum c (d - delta k)^2 = sum c d^2 - 2 delta sum c d k + delta^2 sum c k^2,

T* = delta / sqrt( G* / (G* - 1) q* ) * n*. All sums of all resamples are matrix products. The ratio R = m / M of
a mean to the mean gap is linearised at the sample's (the delta method, see `moments`): its T* is
that of m* - R M*. Evaluating R in every resample anew was tried and covers less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attrib_batch.analysis.statistics.resampling import LEVEL, blocks

TAIL = (1 - LEVEL) / 2

# Below, resamples with hardly any different units are common.
FEWEST_UNITS = 8
# Resamples whose standard error is 0 say nothing; where many are so, neither do the others.
_LEAST_VALID = 0.9
_ROUNDING = 1e-12


@dataclass(frozen=True)
class UnitSums:
    """Sums over the pairs of each unit, for keys that the same pairs have; float64."""

    pairs: np.ndarray
    """(unit,): how many pairs have a value, 0 for none."""
    values: np.ndarray
    """(unit, key): the sum of their values, in metric units."""


@dataclass(frozen=True)
class UnitGaps:
    """Sums over all pairs of each unit; float64, of shape (unit,)."""

    pairs: np.ndarray
    gaps: np.ndarray
    """Clean minus corrupted metric, in metric units."""


@dataclass(frozen=True)
class Quantiles:
    """Lower and upper 2.5 % quantiles of studentised errors, without a unit; NaN where the bootstrap says nothing.

    All of shape (key,). The 95 % interval of a mean m is (m - upper * sem, m - lower * sem).
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_normalized: np.ndarray
    """Likewise for the mean divided by the mean gap."""
    upper_normalized: np.ndarray


def studentised_quantiles(sums: UnitSums, gaps: UnitGaps, counts: np.ndarray) -> Quantiles:
    """Compute the quantiles of studentised errors.

    Args:
        sums: of the units, at least 2 of which have a pair with a value.
        gaps: of the same units.
        counts: (draw, unit), how often each unit counts in each resample.
    """
    gap = _Centred.of(gaps.pairs, gaps.gaps[:, None])
    drawn = _Resampled(gap, np.ascontiguousarray(counts.T))
    pieces = [
        np.stack(_of_block(_Centred.of(sums.pairs, block.T), gap, drawn))
        for block in blocks(sums.values.T, len(counts))
    ]
    return Quantiles(*np.concatenate(pieces, axis=1))


@dataclass(frozen=True)
class _Centred:
    """Unit sums relative to the mean of the sample."""

    k: np.ndarray
    """(unit,)"""
    d: np.ndarray
    """(key, unit)"""
    mean: np.ndarray
    """(key,)"""

    @classmethod
    def of(cls, k: np.ndarray, sums: np.ndarray) -> _Centred:
        mean = sums.sum(axis=0) / k.sum()
        return cls(k, np.ascontiguousarray((sums - k[:, None] * mean).T), mean)

    @property
    def robust(self) -> np.ndarray:
        """The squared standard error in the sample itself, (key,)."""
        n_units = np.asarray(np.count_nonzero(self.k))
        squared: np.ndarray = _correction(n_units) * np.einsum("ku,ku->k", self.d, self.d) / self.k.sum() ** 2
        return squared


class _Resampled:
    """The means of resamples relative to those of the sample, and their squared standard errors."""

    def __init__(self, sample: _Centred, counts: np.ndarray) -> None:
        self.counts = counts
        self.n = sample.k @ counts  # (draw,)
        self.correction = _correction((sample.k > 0).astype(np.float64) @ counts)
        sums = sample.d @ counts
        self.shift = sums / self.n  # (key, draw)
        k2 = sample.k**2 @ counts
        q = (sample.d**2) @ counts - 2 * self.shift * _weighted(sample.d, sample.k, counts, sums)
        self.variance = self.correction * (q + self.shift**2 * k2) / self.n**2


def _of_block(values: _Centred, gap: _Centred, of_gap: _Resampled) -> tuple[np.ndarray, ...]:
    """Compute the quantiles for some keys: lower and upper of the mean, then of the normalised mean; (key,) each."""
    # Resamples without spread, or without any pair that has a value, end as NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = _Resampled(values, of_gap.counts)
        of_mean = _studentised(drawn.shift, drawn.variance, values.robust)

        counts, f = of_gap.counts, gap.d[0]
        sums, all_shift = drawn.shift * drawn.n, of_gap.shift[0]
        cross = (
            (values.d * f) @ counts
            - all_shift * _weighted(values.d, gap.k, counts, sums)
            - drawn.shift * ((values.k * f) @ counts)
            + drawn.shift * all_shift * ((values.k * gap.k) @ counts)
        )
        ratio = (values.mean / gap.mean)[:, None]
        covariance = drawn.correction * cross / (drawn.n * of_gap.n)
        variance = drawn.variance + ratio**2 * of_gap.variance - 2 * ratio * covariance
        size = values.robust + ratio[:, 0] ** 2 * gap.robust
        of_ratio = _studentised(np.sign(gap.mean) * (drawn.shift - ratio * all_shift), variance, size)
    return *_quantiles(of_mean), *_quantiles(of_ratio)


def _correction(units: np.ndarray) -> np.ndarray:
    """Correct a sum of squares over units for their number; NaN below two."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(units > 1, units / (units - 1), np.nan)


def _weighted(d: np.ndarray, weight: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Compute sum c d w for weights of units; ``sums`` is sum c d, which says it all where weights are equal."""
    weighted: np.ndarray = weight[0] * sums if (weight == weight[0]).all() else (d * weight) @ counts
    return weighted


def _studentised(shift: np.ndarray, variance: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Divide shifts by their standard errors, both (key, draw); NaN where ``variance`` is rounding of ``size``."""
    return np.where(variance > _ROUNDING * size[:, None], shift / np.sqrt(variance), np.nan)


def _quantiles(studentised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper quantile of each row of (key, draw); NaN where too few resamples are valid."""
    ordered = np.sort(studentised, axis=1)  # NaN last
    valid = np.count_nonzero(~np.isnan(ordered), axis=1)
    rows = np.arange(len(ordered))
    found = []
    for level in (TAIL, 1 - TAIL):
        place = level * np.maximum(valid - 1, 0)
        below = np.floor(place).astype(np.intp)
        above = np.minimum(below + 1, np.maximum(valid - 1, 0))
        low, high = ordered[rows, below], ordered[rows, above]
        found.append(low + (place - below) * (high - low))
    lower, upper = found
    usable = (valid >= _LEAST_VALID * ordered.shape[1]) & (lower < 0) & (upper > 0)
    return np.where(usable, lower, np.nan), np.where(usable, upper, np.nan)
