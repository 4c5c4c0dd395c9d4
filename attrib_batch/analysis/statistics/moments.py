"""Mean, spread and cluster-robust standard error, from the moments of chunks.

What each sum is, and what a unit is, is said in `attrib_batch.tables.moments`. With n pairs of mean m in G units,

    sem = sqrt( G / (G - 1) * q ) / n

which is the cluster-robust standard error of a mean (Liang & Zeger 1986, with the G / (G - 1) correction); with one
pair per unit it is the ordinary std / sqrt(n). A normalised mean is the ratio R = m / M of two means of the same pairs,
the mean score and the mean gap M of N pairs. By the delta method its variance is

    ( var(m) + R^2 var(M) - 2 R cov(m, M) ) / M^2 ,   cov(m, M) = G / (G - 1) * cross / (n N)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.tables.merging import STRATUM_KEYS, shifted
from attrib_batch.tables.moments import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = ("component", "scope", "role", "layer", "head", "position")


@dataclass(frozen=True)
class Gap:
    """The mean gap between clean and corrupted metric, over all scored pairs of a cell; metric units."""

    mean: float
    sem: float | None
    """Cluster-robust; None for one unit."""
    n_pairs: int
    n_units: int
    normalizable: bool
    """Whether it is far enough from 0 to divide by."""


def merge_moments(pieces: pl.DataFrame, keys: Sequence[str], gap: float) -> pl.DataFrame:
    """Add the moments of disjoint sets of pairs, whose units count as different ones.

    Args:
        pieces: rows of the schema `attrib_batch.tables.MOMENTS`.
        keys: the columns whose values keep rows apart; all others are sums.
        gap: the mean gap that the sums are to be relative to, the same in every call of one cell.
    """
    n = pl.col("n")
    mean = (n * pl.col("mean")).sum() / n.sum()
    shift, gap_shift = pl.col("mean") - mean, pl.col("gap") - gap
    r_all, r_gap, k_all = pl.col("r_all"), pl.col("r_gap"), pl.col("k_all")
    merged = pieces.group_by(keys).agg(
        **shifted(mean),
        m2=(pl.col("m2") + n * shift**2).sum(),
        gap=pl.lit(gap),
        cross=(pl.col("cross") + shift * r_gap + gap_shift * r_all + shift * gap_shift * k_all).sum(),
        r_all=(r_all + shift * k_all).sum(),
        r_gap=(r_gap + gap_shift * k_all).sum(),
        k_all=k_all.sum(),
        min=pl.col("min").min(),
        max=pl.col("max").max(),
        min_pair=pl.col("min_pair").filter(pl.col("min") == pl.col("min").min()).min(),
        max_pair=pl.col("max_pair").filter(pl.col("max") == pl.col("max").max()).min(),
    )
    return merged.select(pieces.columns)


def join_units(moments: pl.DataFrame, parts_of_units: pl.DataFrame, gaps: pl.DataFrame) -> pl.DataFrame:
    """Make one unit of the parts that units were counted as.

    Args:
        moments: merged moments of a cell, whose means are final.
        parts_of_units: `KEYS`, ``unit``, ``part``, and of the unit's pairs in this part that have a value their number
            ``k`` and the sum ``s`` of their values.
        gaps: ``unit``, ``part``, and of all pairs of the unit in this part their number ``k_all`` and ``e``, the sum of
            their gaps relative to the mean gap of the cell. All parts of a unit are given at once.

    Returns:
        The moments in which each unit is one.
    """
    whole = gaps.group_by("unit").agg(whole_k=pl.col("k_all").sum(), whole_e=pl.col("e").sum())
    means = moments.select(*KEYS, "mean")
    d, k, e, k_all = pl.col("d"), pl.col("k"), pl.col("e"), pl.col("k_all")
    n, whole_e, whole_k = pl.col("k").sum(), pl.col("whole_e").first(), pl.col("whole_k").first()
    more = (
        parts_of_units.join(means, on=KEYS, nulls_equal=True)
        .with_columns(d=pl.col("s") - k * pl.col("mean"))
        .join(gaps, on=["unit", "part"])
        .join(whole, on="unit")
        .group_by(*KEYS, "unit")
        .agg(
            units=1 - pl.len().cast(pl.Int64),
            q=d.sum() ** 2 - (d**2).sum(),
            r=d.sum() * n - (d * k).sum(),
            k2=n**2 - (k**2).sum(),
            cross=d.sum() * whole_e - (d * e).sum(),
            r_all=d.sum() * whole_k - (d * k_all).sum(),
            r_gap=whole_e * n - (e * k).sum(),
            k_all=n * whole_k - (k * k_all).sum(),
        )
        .group_by(KEYS)
        .agg(pl.exclude("unit").sum())
    )
    changed = [name for name in more.columns if name not in KEYS]
    return (
        moments.join(more, on=KEYS, how="left", nulls_equal=True, suffix="_more")
        .with_columns(pl.col(name) + pl.col(f"{name}_more").fill_null(0) for name in changed)
        .select(moments.columns)
    )


def statistics(moments: pl.DataFrame, keys: Sequence[str], gap: Gap) -> pl.DataFrame:
    """Turn moments into the statistics that summaries store.

    Args:
        moments: as from `merge_moments`.
        keys: the columns that are kept.
        gap: of the cell.

    Returns:
        ``keys``, ``n_pairs``, ``n_groups``, and in metric units ``mean``, ``std`` (ddof 1, over pairs; null
        for one pair), ``sem`` (cluster-robust; null for one unit), ``min``, ``max`` with the pairs that have them,
        ``share_positive``; ``mean`` and ``std`` again divided by the gap as ``*_normalized``, without a unit, and
        ``sem_normalized`` by the delta method; null without a gap.
    """
    divisor = pl.lit(gap.mean if gap.normalizable else None, pl.Float64)
    ratio = pl.col("mean") / divisor
    variance = _robust("q") / pl.col("n") ** 2
    covariance = _robust("cross") / (pl.col("n") * gap.n_pairs)
    of_ratio = variance + ratio**2 * pl.lit(gap.sem, pl.Float64) ** 2 - 2 * ratio * covariance
    return moments.select(
        *keys,
        **_statistics(),
        std=_std(),
        min=pl.col("min"),
        max=pl.col("max"),
        min_pair=pl.col("min_pair"),
        max_pair=pl.col("max_pair"),
        mean_normalized=ratio,
        std_normalized=_std() / divisor.abs(),
        # Rounding may leave a variance a hair below 0.
        sem_normalized=of_ratio.clip(lower_bound=0.0).sqrt() / divisor.abs(),
    )


def stratum_statistics(strata: pl.DataFrame) -> pl.DataFrame:
    """Turn the moments of strata into ``n_pairs``, ``n_groups``, ``mean``, ``sem`` and ``share_positive``."""
    return strata.select(*STRATUM_KEYS, **_statistics())


def _statistics() -> dict[str, pl.Expr]:
    return {
        "n_pairs": pl.col("n"),
        "n_groups": pl.col("units"),
        "mean": pl.col("mean"),
        "sem": _robust("q").clip(lower_bound=0.0).sqrt() / pl.col("n"),
        "share_positive": pl.col("positive") / pl.col("n"),
    }


def _std() -> pl.Expr:
    n = pl.col("n")
    return pl.when(n > 1).then((pl.col("m2").clip(lower_bound=0.0) / (n - 1)).sqrt())


def _robust(sums: str) -> pl.Expr:
    """Correct a sum over units for their number; null for one unit."""
    units = pl.col("units")
    return pl.when(units > 1).then(units / (units - 1) * pl.col(sums))


def mean_of_units(values: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
    """Compute means over pairs and their cluster-robust standard errors from one value per pair.

    Args:
        values: rows with ``keys``, ``unit`` and ``value`` (float64), one per pair and key.
        keys: what is kept apart.

    Returns:
        ``keys``, ``n_pairs``, ``n_groups``, ``mean``, ``sem`` (null for one unit).
    """
    k, s = pl.col("k"), pl.col("s")
    d = s - k * s.sum() / k.sum()
    # Groups come in any order, and sums in another order differ in the last digit.
    units = values.group_by(*keys, "unit").agg(k=pl.len().cast(pl.Int64), s=pl.col("value").sum()).sort("unit", *keys)
    return (
        units.group_by(keys, maintain_order=True)
        .agg(n=k.sum(), units=pl.len().cast(pl.Int64), mean=s.sum() / k.sum(), q=(d * d).sum())
        .select(*keys, n_pairs="n", n_groups="units", mean="mean", sem=_robust("q").sqrt() / pl.col("n"))
    )


HEAD_SCOPES = (Scope.ROLE, Scope.LAST, Scope.ALL)
"""Scopes whose values are those of single heads."""


def t_quantile(n_groups: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Compute the quantile of Student's t with G - 1 degrees of freedom that two-sided intervals reach to.

    Args:
        n_groups: sampling units, G, any shape.
        level: confidence, 0 to 1.

    Returns:
        The quantile at (1 + ``level``) / 2, of the same shape; NaN below two units.
    """
    from scipy.special import stdtrit  # takes longer to import than reading the moments

    quantile: np.ndarray = stdtrit(np.where(n_groups > 1, n_groups - 1, np.nan), 0.5 + level / 2)
    return quantile


def half_width(sem: np.ndarray, n_groups: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Compute half the width of a confidence interval of a mean.

    Args:
        sem: standard errors, any shape and unit.
        n_groups: sampling units behind each, of the same shape.
        level: confidence, 0 to 1.

    Returns:
        ``sem`` times the t quantile with G - 1 degrees of freedom, in the unit of ``sem``; NaN below two
        units.
    """
    width: np.ndarray = sem * t_quantile(n_groups, level)
    return width
