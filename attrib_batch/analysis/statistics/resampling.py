"""Bootstrap over sampling units, of statistics that are functions of sums.

Whatever adds up over units (counts, moments, maps of sums) is kept once per unit; a resample is then a row of counts,
how often each unit was drawn, and all resamples of all sums are one matrix product (Efron, Tibshirani 1993, section
6.3, with units in place of observations).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Shaped

LEVEL = 0.95
"""The confidence of every interval."""

# Of float64, 16 MB: a map of every resample at once could be gigabytes.
_BLOCK_VALUES = 2_000_000


def draw_counts(n_units: int, resamples: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    """Draw how often each unit counts: in the sample itself, and in its resamples.

    Returns:
        Float64, one row more than ``resamples``; row 0, the sample itself, is all ones, every row sums to ``n_units``.
        The same arguments give the same counts, so methods that were verified on the same pairs are resampled alike.
    """
    drawn = np.random.default_rng(seed).multinomial(n_units, np.full(n_units, 1 / n_units), size=resamples)
    return np.concatenate([np.ones((1, n_units)), drawn])


def sum_by_unit(
    unit: Int[np.ndarray, " row"], n_units: int, *columns: Shaped[np.ndarray, " row"]
) -> Float[np.ndarray, "unit column"]:
    """Add up columns of rows within units.

    Args:
        unit: each row's unit, 0 to ``n_units`` - 1.
        n_units: how many units there are; those without a row have sums of 0.
        *columns: values, one per row.

    Returns:
        The sums of each column, in float64.
    """
    return np.stack([np.bincount(unit, column, n_units) for column in columns], axis=1)


def blocks(counts: Float[np.ndarray, "draw unit"], width: int) -> list[Float[np.ndarray, "block unit"]]:
    """Split rows of counts so that a product with ``width`` columns stays small."""
    rows = max(1, _BLOCK_VALUES // max(width, 1))
    return [counts[i : i + rows] for i in range(0, len(counts), rows)]


def interval(values: Float[np.ndarray, " draw"]) -> tuple[float | None, float | None, float | None]:
    """Compute a statistic and its percentile interval.

    Args:
        values: the statistic in the sample, then in each resample; NaN where it is not defined.

    Returns:
        Value, lower and upper end; None where undefined. Resamples in which it is undefined do not count.
    """
    value, resampled = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None, None, None
    if not len(resampled):
        return float(value), None, None
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(value), float(low), float(high)
