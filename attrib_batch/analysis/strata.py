"""Whether a head serves all wordings or one alone: its means by template and by task side by side."""

from __future__ import annotations

import polars as pl

from attrib_batch.analysis.tables import CELL

_HEAD = (*CELL, "kind", "component", "scope", "layer", "head")

SPREAD = pl.Schema(
    {
        "model": pl.String(),
        "dataset": pl.String(),
        "method": pl.String(),
        "kind": pl.String(),  # template or task
        "component": pl.String(),
        "scope": pl.String(),  # last or all
        "layer": pl.Int16(),
        "head": pl.Int16(),
        "n_strata": pl.Int64(),
        "n_pairs": pl.Int64(),  # of all strata
        "mean": pl.Float64(),  # over their pairs, metric units, as are all means below
        "share_same_sign": pl.Float64(),  # share of strata whose mean has the sign of that mean, 0 to 1
        "smallest": pl.Float64(),  # the smallest mean of a stratum
        "smallest_stratum": pl.String(),
        "largest": pl.Float64(),
        "largest_stratum": pl.String(),
        "strongest_stratum": pl.String(),  # whose pairs add up to the most, by magnitude
        "mean_of_others": pl.Float64(),  # over the pairs of all other strata; null for one stratum
    }
)
"""The columns of `stratum_spread`."""


def stratum_spread(strata: pl.DataFrame) -> pl.DataFrame:
    """Compare the strata of each head.

    A head that serves one wording only has ``mean_of_others`` near 0, however large its mean is; one that works
    against some of them has a ``share_same_sign`` below 1.

    Args:
        strata: the ``strata`` of a `Summary`, or some of its rows.

    Returns:
        The columns of `SPREAD`, one row per cell, kind, component, scope, layer and head.
    """
    mean, n = pl.col("mean"), pl.col("n_pairs")
    total = n * mean
    # Rows come in one order, so that of equal strata the first by name is taken.
    strongest = total.abs().arg_max()
    overall = total.sum() / n.sum()
    others = n.sum() - n.get(strongest)
    return (
        strata.sort(*_HEAD, "stratum")
        .group_by(_HEAD, maintain_order=True)
        .agg(
            n_strata=pl.len(),
            n_pairs=n.sum(),
            mean=overall,
            share_same_sign=(mean.sign() == overall.sign()).mean(),
            smallest=mean.min(),
            smallest_stratum=pl.col("stratum").get(mean.arg_min()),
            largest=mean.max(),
            largest_stratum=pl.col("stratum").get(mean.arg_max()),
            strongest_stratum=pl.col("stratum").get(strongest),
            mean_of_others=pl.when(others > 0).then((total.sum() - total.get(strongest)) / others),
        )
        .select(SPREAD.names())
        .cast(SPREAD)
    )
