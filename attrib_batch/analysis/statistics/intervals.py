"""Intervals, p-values and control of false discoveries, from the statistics of `moments`.

All rest on T = (mean - truth) / sem and its 2.5 % and 97.5 % quantiles: those of Student's t with G - 1 degrees of
freedom, or those that the bootstrap found for cells of few units (`studentised`). The interval is
(mean - upper * sem, mean - lower * sem). The p-value is that of t with G - 1 degrees of freedom, after mean / sem is
scaled so that it reaches the t quantile where it reaches the quantile of its side: it is below 0.05 exactly where the
interval leaves 0 out, and unlike a share of resamples it has no least value, which many heads at a time would miss.

Adjusted p-values control the expected share of false discoveries within a *family*: the layers and heads (or positions)
of one map, that is of one cell, component, scope and role. That is what a reader looks at and picks heads from.
Benjamini, Hochberg (1995) holds for independent scores and, in practice, for heads of one model; Benjamini, Yekutieli
(2001, theorem 1.3) under any dependence, at a price of about ln(m) for m heads.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.moments import KEYS, t_quantile

FAMILY = ("component", "scope", "role")
"""Rows of a cell that agree in these are tested together."""

FALSE_DISCOVERY_RATE = 0.05
"""What ``survives`` compares ``q_bh`` with."""


def add_intervals(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the 95 % t intervals of means, ``low`` and ``high``; null for one unit.

    Args:
        rows: ``mean``, ``sem``, ``n_groups``.
    """
    t = pl.Series(t_quantile(rows.get_column("n_groups").to_numpy()), nan_to_null=True)
    mean, half = pl.col("mean"), pl.col("sem") * t
    return rows.with_columns(low=mean - half, high=mean + half)


def add_inference(rows: pl.DataFrame, quantiles: pl.DataFrame | None, *, magnitudes: bool) -> pl.DataFrame:
    """Add intervals, p-values and adjusted p-values to the statistics of one cell.

    Args:
        rows: as from `moments.statistics`, with all of `KEYS`.
        quantiles: as from `units.bootstrap_cell`; t is used where it is null or has no row.
        magnitudes: whether scores are magnitudes: their mean is above 0 whatever a head does, so nothing is tested.

    Returns:
        ``rows`` and ``low, high`` (95 % interval of ``mean``), ``low_normalized, high_normalized``; ``p_value``,
        two-sided against a mean of 0; ``q_bh`` and ``q_by``, adjusted within the family; ``survives``, whether ``q_bh``
        is below 0.05. Null for one unit; the latter four also where every value is 0, as it is by construction before
        the first difference: such rows are no hypotheses, and do not count in their family.
    """
    t = t_quantile(rows.get_column("n_groups").to_numpy())
    rows = rows.with_columns(t=pl.Series(t, nan_to_null=True))
    if quantiles is not None:
        rows = rows.join(quantiles, on=KEYS, how="left", nulls_equal=True, maintain_order="left")
    found = set(rows.columns)
    of_t = {"lower": -pl.col("t"), "upper": pl.col("t")}
    rows = rows.with_columns(
        (pl.coalesce(name, bound) if (name := f"{side}{of}") in found else bound).alias(f"{side}{of}")
        for side, bound in of_t.items()
        for of in ("", "_normalized")
    )
    rows = rows.with_columns(
        low=pl.col("mean") - pl.col("upper") * pl.col("sem"),
        high=pl.col("mean") - pl.col("lower") * pl.col("sem"),
        low_normalized=pl.col("mean_normalized") - pl.col("upper_normalized") * pl.col("sem_normalized"),
        high_normalized=pl.col("mean_normalized") - pl.col("lower_normalized") * pl.col("sem_normalized"),
        p_value=pl.lit(None, pl.Float64) if magnitudes else _p_values(rows),
    )
    return _adjusted(rows.drop("t", *(f"{side}{of}" for side in of_t for of in ("", "_normalized"))))


def _p_values(rows: pl.DataFrame) -> pl.Series:
    """Compute two-sided p-values against 0; null for one unit, and where every value is 0."""
    from scipy.special import stdtr  # takes longer to import than reading the moments

    mean, sem, t, lower, upper, groups = (
        rows.get_column(name).cast(pl.Float64).to_numpy() for name in ("mean", "sem", "t", "lower", "upper", "n_groups")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        # 0 / 0 is the NaN of values that are all 0; values that are all alike and not 0 have a p-value of 0.
        statistic = np.abs(mean) / sem * (t / np.where(mean > 0, upper, -lower))
        p = 2 * stdtr(groups - 1, -statistic)
    return pl.Series(p, nan_to_null=True)


def _adjusted(rows: pl.DataFrame) -> pl.DataFrame:
    """Add ``q_bh``, ``q_by`` and ``survives``."""
    from scipy.stats import false_discovery_control  # takes longer to import than reading the moments

    tested = rows.with_row_index("row").filter(pl.col("p_value").is_not_null()).select("row", "p_value", *FAMILY)
    pieces = []
    for family in tested.partition_by(FAMILY):
        p = family.get_column("p_value").to_numpy()
        bh, by = (pl.Series(false_discovery_control(p, method=method)) for method in ("bh", "by"))
        pieces.append(family.select("row", q_bh=bh, q_by=by))
    empty = pl.DataFrame(schema={"row": pl.get_index_type(), "q_bh": pl.Float64, "q_by": pl.Float64})
    return (
        rows.with_row_index("row")
        .join(pl.concat([empty, *pieces]), on="row", how="left", maintain_order="left")
        .drop("row")
        .with_columns(survives=pl.col("q_bh") < FALSE_DISCOVERY_RATE)
    )
