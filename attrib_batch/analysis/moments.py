"""Mean, spread and cluster-robust standard error, from pieces that add up.

Every quantity is kept relative to the mean of its own piece and shifted when pieces are merged (Chan, Golub,
LeVeque 1983), so that neither many pieces nor a mean far from 0 cost precision.

A *unit* is what was sampled: all pairs of one ``group`` (a pair and its mirror), or one pair without a group.
Pairs of a unit are not independent. With n pairs x_i of mean m in G units g,

    sem = sqrt( G / (G - 1) * sum_g ( sum_{i in g} (x_i - m) )^2 ) / n

which is the cluster-robust standard error of a mean (Liang & Zeger 1986, with the G / (G - 1) correction);
with one pair per unit it is the ordinary std / sqrt(n).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


def units_of_pairs(values: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """Gather one value per pair into partial units.

    Args:
        values: rows with ``keys``, ``unit`` and ``value`` (float64), one per pair and key.
        keys: what is kept apart (component, layer, head, ...).

    Returns:
        One row per (key, unit): ``k`` pairs, their sum ``s``, squared deviations ``m2`` from their own mean,
        ``min``, ``max``. Partial units of one unit merge with `merge_units`.
    """
    value = pl.col("value")
    return values.group_by(*keys, "unit").agg(
        k=pl.len().cast(pl.Int64),
        s=value.sum(),
        m2=((value - value.mean()) ** 2).sum(),
        min=value.min(),
        max=value.max(),
    )


def merge_units(pieces: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    """Merge partial units that were gathered from different files."""
    own_mean, mean = pl.col("s") / pl.col("k"), pl.col("s").sum() / pl.col("k").sum()
    return (
        pl.concat(pieces)
        .group_by(*keys, "unit")
        .agg(
            k=pl.col("k").sum(),
            s=pl.col("s").sum(),
            m2=(pl.col("m2") + pl.col("k") * (own_mean - mean) ** 2).sum(),
            min=pl.col("min").min(),
            max=pl.col("max").max(),
        )
    )


def moments_of_units(units: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """Reduce complete units to additive moments.

    Returns:
        One row per key: ``n`` pairs, ``mean``, ``m2`` = sum of squared deviations of pairs, ``g`` units, and
        with d = (sum of a unit) - (its pairs) * mean: ``q`` = sum d^2, ``r`` = sum d * k, ``k2`` = sum k^2;
        ``min``, ``max``.
    """
    k, s = pl.col("k"), pl.col("s")
    mean = s.sum() / k.sum()
    d = s - k * mean
    return units.group_by(keys).agg(
        n=k.sum(),
        mean=mean,
        m2=(pl.col("m2") + k * (s / k - mean) ** 2).sum(),
        g=pl.len().cast(pl.Int64),
        q=(d * d).sum(),
        r=(d * k).sum(),
        k2=(k * k).sum(),
        min=pl.col("min").min(),
        max=pl.col("max").max(),
    )


def merge_moments(pieces: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    """Add the moments of disjoint sets of units."""
    n = pl.col("n")
    mean = (n * pl.col("mean")).sum() / n.sum()
    shift = pl.col("mean") - mean
    k2, r = pl.col("k2"), pl.col("r")
    return (
        pl.concat(pieces)
        .group_by(keys)
        .agg(
            n=n.sum(),
            mean=mean,
            m2=(pl.col("m2") + n * shift**2).sum(),
            g=pl.col("g").sum(),
            q=(pl.col("q") + 2 * shift * r + shift**2 * k2).sum(),
            r=(r + shift * k2).sum(),
            k2=k2.sum(),
            min=pl.col("min").min(),
            max=pl.col("max").max(),
        )
    )


def statistics(moments: pl.DataFrame, keys: Sequence[str], gap: float | None) -> pl.DataFrame:
    """Turn moments into the statistics that summaries store.

    Args:
        moments: as from `merge_moments`.
        keys: the columns that are kept.
        gap: mean clean minus mean corrupted metric, or None where it is about 0.

    Returns:
        ``keys``, ``n_pairs``, ``n_groups``, and in metric units ``mean``, ``std`` (ddof 1, over pairs; null
        for one pair), ``sem`` (cluster-robust; null for one unit), ``min``, ``max``; the first three again
        divided by ``gap`` as ``*_normalized``, without a unit, null without a gap. The gap counts as known:
        its own uncertainty is not in them.
    """
    n, g = pl.col("n"), pl.col("g")
    # Rounding may leave a sum of squares a hair below 0.
    std = pl.when(n > 1).then((pl.col("m2").clip(lower_bound=0.0) / (n - 1)).sqrt())
    sem = pl.when(g > 1).then((g / (g - 1) * pl.col("q").clip(lower_bound=0.0)).sqrt() / n)
    divisor = pl.lit(gap, pl.Float64)
    return moments.select(
        *keys,
        n_pairs=n,
        n_groups=g,
        mean=pl.col("mean"),
        std=std,
        sem=sem,
        min=pl.col("min"),
        max=pl.col("max"),
    ).with_columns(
        mean_normalized=pl.col("mean") / divisor,
        std_normalized=pl.col("std") / divisor.abs(),
        sem_normalized=pl.col("sem") / divisor.abs(),
    )


def half_width(sem: np.ndarray, n_groups: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Half the width of a confidence interval of a mean.

    Args:
        sem: standard errors, any shape and unit.
        n_groups: sampling units behind each, of the same shape.
        level: confidence, 0 to 1.

    Returns:
        ``sem`` times the t quantile with G - 1 degrees of freedom, in the unit of ``sem``; NaN below two
        units.
    """
    from scipy import stats  # takes longer to import than all else here

    width: np.ndarray = sem * stats.t.ppf(0.5 + level / 2, n_groups - 1)
    return width
