"""Mean estimates and mean exact effects, head by head: where a method misleads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.statistics.moments import half_width, mean_of_units
from attrib_batch.analysis.tables import CELL, read_manifest
from attrib_batch.analysis.verification.verified import Verified, read_verified, verified_cells

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.storage.store import Store

NEGLIGIBLE = 0.01
"""Differences below this share of the largest absolute mean exact effect of the component mislead nobody."""

_HEAD = ("component", "layer", "head")

EFFECTS = pl.Schema(
    {
        "component": pl.String(),
        "layer": pl.Int16(),
        "head": pl.Int16(),  # null for components without heads
        "n_pairs": pl.Int64(),
        "n_groups": pl.Int64(),  # sampling units among the pairs
        "estimate": pl.Float64(),  # mean over pairs, metric units, as are the following
        "exact": pl.Float64(),
        "difference": pl.Float64(),  # estimate minus exact
        "half_width": pl.Float64(),  # of its 95% interval (cluster-robust, t); null for one unit
        "exact_half_width": pl.Float64(),  # of that of ``exact``
    }
)
"""The columns of `mean_effects`."""


def mean_effects(verified: Verified) -> pl.DataFrame:
    """Mean estimate and mean exact effect of every head at ``Verified.at``, as in `EFFECTS`.

    The rows come with the surest large differences first: by the smallest difference in the 95% interval, then, where
    the interval holds 0, by the difference itself. Differences below ``NEGLIGIBLE`` come last, however sure.
    """
    # Groups come in any order, and sums in another order differ in the last digit: each step is sorted.
    by_pair = (
        verified.rows.lazy()
        .filter("at_end")
        .group_by("pair_id", "unit", *_HEAD)
        .agg(pl.col("estimate").sum(), pl.col("exact").sum())
        .sort("pair_id", *_HEAD)
        .collect()
        .lazy()
    )
    differences, of_exact = (
        mean_of_units(by_pair.with_columns(value=value), _HEAD).collect().sort(_HEAD)
        for value in (pl.col("estimate") - pl.col("exact"), pl.col("exact"))
    )
    means = by_pair.group_by(_HEAD).agg(pl.col("estimate").mean(), pl.col("exact").mean()).collect()
    widths = (_half_width(differences).alias("half_width"), _half_width(of_exact).alias("exact_half_width"))
    size, half = pl.col("difference").abs(), pl.col("half_width")
    counts = size >= NEGLIGIBLE * pl.col("exact").abs().max().over("component")
    surely = pl.when(counts, half.is_not_null()).then((size - half).clip(lower_bound=0)).otherwise(0.0)
    return (
        differences.with_columns(*widths, difference="mean")
        .join(means, on=_HEAD, nulls_equal=True)
        .select(EFFECTS.names())
        .cast(EFFECTS)
        .sort(surely, size, *_HEAD, descending=[True, True, False, False, False])
    )


def _half_width(means: pl.DataFrame) -> pl.Series:
    sem, n_groups = means.get_column("sem").cast(pl.Float64), means.get_column("n_groups")
    return pl.Series(half_width(sem.to_numpy(), n_groups.to_numpy()), nan_to_null=True)


def strongest_disagreements(out: str | Path | Store, n: int) -> pl.DataFrame:
    """Find the heads for which a method misleads most.

    Args:
        out: the run's directory.
        n: how many of each component in each verified cell.

    Returns:
        ``model, dataset, method`` and the columns of `EFFECTS`, in the order of `mean_effects` within a component.

    Raises:
        OutputError: exact scores and estimates do not match.
    """
    manifest = read_manifest(out)
    frames = [pl.DataFrame(schema={**dict.fromkeys(CELL, pl.String()), **EFFECTS})]
    for cell in verified_cells(out):
        effects = mean_effects(read_verified(out, cell, manifest)).group_by("component", maintain_order=True).head(n)
        names = [pl.lit(getattr(cell, key)).alias(key) for key in CELL]
        frames.append(effects.select(*names, *EFFECTS.names()))
    return pl.concat(frames)
