"""95% intervals of summary rows: the summary's own where it has them, t intervals of the standard error otherwise."""

from __future__ import annotations

import polars as pl

from attrib_batch.analysis import half_width


def with_intervals(rows: pl.DataFrame) -> pl.DataFrame:
    """Add ``low, high, low_normalized, high_normalized`` where they are missing; null where there is no interval."""
    for suffix in ("", "_normalized"):
        ends = f"low{suffix}", f"high{suffix}"
        if set(ends) <= set(rows.columns):
            continue
        if f"sem{suffix}" in rows.columns:
            sem = rows.get_column(f"sem{suffix}").cast(pl.Float64).to_numpy()
            width = pl.Series(half_width(sem, rows.get_column("n_groups").to_numpy()), nan_to_null=True)
        else:
            width = pl.Series([None] * len(rows), dtype=pl.Float64)
        middle = pl.col(f"mean{suffix}") if f"mean{suffix}" in rows.columns else pl.lit(None, pl.Float64)
        rows = rows.with_columns((middle - width).alias(ends[0]), (middle + width).alias(ends[1]))
    return rows
