"""Add up sums that are each relative to a mean of their own; see `attrib_batch.tables.moments`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

STRATUM_KEYS = ("kind", "stratum", "component", "scope", "layer", "head")


def shifted(reference: pl.Expr) -> dict[str, pl.Expr]:
    """Return the sums of pieces relative to one mean, added up."""
    n, q, r, k2 = pl.col("n"), pl.col("q"), pl.col("r"), pl.col("k2")
    shift = pl.col("mean") - reference
    return {
        "n": n.sum(),
        "mean": reference,
        "units": pl.col("units").sum(),
        "q": (q + 2 * shift * r + shift**2 * k2).sum(),
        "r": (r + shift * k2).sum(),
        "k2": k2.sum(),
        "positive": pl.col("positive").sum(),
    }


def merge_strata(pieces: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Add the sums of disjoint sets of pairs, whose units count as different ones.

    Args:
        pieces: rows of the schema `attrib_batch.tables.STRATA`.
        keys: the columns whose values keep rows apart; all others are sums.
    """
    n = pl.col("n")
    merged = pieces.group_by(keys).agg(**shifted((n * pl.col("mean")).sum() / n.sum()))
    return merged.select(pieces.columns)
