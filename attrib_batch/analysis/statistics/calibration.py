"""Means of exact effects, from the estimates of all pairs and the exact effects of a random sample of them.

Prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633) with power tuning (PPI++, arXiv 2311.01453).
Of N scored pairs with estimates f, n were drawn and have exact effects e as well. With f_u the mean estimate of the
N - n others,

    mean = 1/n * sum over the sample of  ( e - w (f - f_u) ),

whose expectation is the mean exact effect whatever the estimates are worth, and whose variance is smallest where w is
(1 - n / N) times the slope of e on f. A slope that is fitted to the pairs that it is applied to makes intervals too
narrow, so every unit has the slope of all other units of the sample. With the residuals r of the units of the
sample and cluster-robust variances as in `attrib_batch.analysis.statistics.moments`,

    variance = var(mean of r) + w^2 var(f_u) ,

two parts that are independent; the interval is Student's t with the degrees of freedom of such a sum (Welch,
Satterthwaite). Of few and strongly skewed effects it covers less, as t does: 0.935 at 64 exponential ones that the
estimates say nothing of. Bootstrap-t and a correction for skewness were tried, and cover less elsewhere.

It is an interval for the mean exact effect of all pairs like those of the dataset, so that it is never narrower than
that of N exact effects would be. What it is worth is the number of pairs whose exact effects alone would give the same
variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attrib_batch.analysis.statistics.resampling import LEVEL
from attrib_batch.analysis.statistics.studentised import FEWEST_UNITS

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Sampled:
    """Sums over the pairs of each unit of a random sample, for keys that the same pairs have; float64."""

    pairs: np.ndarray
    """(unit,), at least 1."""
    exact: np.ndarray
    """(unit, key), in metric units."""
    estimate: np.ndarray
    """(unit, key)."""


@dataclass(frozen=True)
class Everything:
    """Estimates of all pairs, those of the sample included; arrays of shape (key,)."""

    n_pairs: int
    n_units: int
    mean: np.ndarray
    """Float64, in metric units."""
    sem: np.ndarray
    """Its cluster-robust standard error."""


@dataclass(frozen=True)
class Calibrated:
    """Mean exact effects; arrays of shape (key,), in metric units."""

    mean: np.ndarray
    low: np.ndarray
    """95 % interval."""
    high: np.ndarray
    effective_pairs: np.ndarray
    """How many pairs' exact effects would give as small a variance, at most all pairs; NaN where nothing varies."""


def calibrate(sample: Sampled, everything: Everything) -> Calibrated | None:
    """Estimate mean exact effects with intervals; None for a sample of too few units."""
    from scipy.special import stdtrit  # takes longer to import than all else here

    if len(sample.pairs) < FEWEST_UNITS:
        return None
    of = _Sample(sample)
    n, n_all, left = of.n, everything.n_pairs, everything.n_pairs - of.n
    if left > 0:
        unseen = (n_all * everything.mean - n * of.estimate) / left
        # Of the units that were not drawn, as if they varied as all do.
        of_unseen = everything.sem**2 * n_all / left
        weight = of.slopes * (left / n_all)
    else:
        unseen, of_unseen, weight = of.estimate, np.zeros_like(of.estimate), np.zeros_like(of.slopes)
    k = sample.pairs[:, None]
    corrected = sample.exact - weight * (sample.estimate - unseen * k)
    mean = corrected.sum(axis=0) / n
    first = of.robust(corrected - mean * k)
    second = ((weight * k).sum(axis=0) / n) ** 2 * of_unseen
    variance, alone = first + second, of.robust(of.of_exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (first**2 / (of.n_units - 1) + second**2 / max(everything.n_units - of.n_units - 1, 1))
        worth = np.minimum(n * alone / variance, n_all)
    half = np.where(variance > 0, stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance), 0.0)
    return Calibrated(mean, mean - half, mean + half, np.where(alone > 0, worth, np.nan))


class _Sample:
    """A sample relative to its own means."""

    def __init__(self, sample: Sampled) -> None:
        self.k = sample.pairs.astype(np.float64)[:, None]
        self.n_units, self.n = len(sample.pairs), float(sample.pairs.sum())
        self.estimate = sample.estimate.sum(axis=0) / self.n
        self.of_exact = sample.exact - self.k * (sample.exact.sum(axis=0) / self.n)
        self.of_estimate = sample.estimate - self.k * self.estimate

    def robust(self, residuals: np.ndarray) -> np.ndarray:
        """Compute squared standard errors of means, (key,), from residuals of units, (unit, key)."""
        squared: np.ndarray = self.n_units / (self.n_units - 1) * (residuals**2).sum(axis=0) / self.n**2
        return squared

    @cached_property
    def slopes(self) -> np.ndarray:
        """For each unit the slope of the exact effects on the estimates of all others, (unit, key).

        0 where the estimates of the others do not vary.
        """
        e, f, k = self.of_exact, self.of_estimate, self.k
        # Leaving a unit out moves the means of the others, and every sum of products with them.
        others = self.n - k
        mean_e, mean_f = -e / others, -f / others

        def without(product: np.ndarray, a: np.ndarray, mean_a: np.ndarray) -> np.ndarray:
            left: np.ndarray = product.sum(axis=0) - product
            with_f, with_a = ((x * k).sum(axis=0) - x * k for x in (f, a))
            squares = (k * k).sum() - k * k
            left += mean_a * mean_f * squares - mean_a * with_f - mean_f * with_a
            return left

        covariance, variance = without(e * f, e, mean_e), without(f * f, f, mean_f)
        varies = variance > _ROUNDING * (f * f).sum(axis=0)
        slopes: np.ndarray = np.where(varies, covariance, 0.0) / np.where(varies, variance, 1.0)
        return slopes
