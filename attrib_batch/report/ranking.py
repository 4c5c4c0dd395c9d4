"""The strongest heads of a cell, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis import half_width

if TYPE_CHECKING:
    from attrib_batch.report.figures import Quantity

_MOST_ROWS = 15


@dataclass(frozen=True)
class RankedHead:
    """One row of the table; normalised values and half widths are None where they do not exist."""

    name: str
    """``L9H9`` for layer 9, head 9."""
    layer: int
    head: int
    mean_normalized: float | None
    half_width_normalized: float | None
    mean: float
    half_width: float | None
    std: float | None
    n_pairs: int
    share: float
    """The mean as a share of the largest one, -1 to 1."""


@dataclass(frozen=True)
class Ranking:
    """The heads with the largest absolute mean."""

    at: str
    """Where the scores were taken, as a phrase."""
    of: int
    """How many heads there are."""
    n_groups: int
    rows: list[RankedHead]


def rank_heads(heads: pl.DataFrame, quantity: Quantity) -> Ranking:
    """Rank one component's heads at the role ``end``; without it at the last position, or else at all there are."""
    at_end = heads.filter((pl.col("scope") == "role") & (pl.col("role") == "end"))
    at_last = heads.filter(pl.col("scope") == "last")
    at_all = heads.filter(pl.col("scope") == "all")
    choices = ((at_end, "“end”"), (at_last, "the last position"), (at_all, "the positions that were asked for"))
    rows, at = next((rows, at) for rows, at in choices if len(rows))
    groups = rows.get_column("n_groups").to_numpy()
    widths = {
        name: pl.Series(half_width(rows.get_column(sem).cast(pl.Float64).to_numpy(), groups), nan_to_null=True)
        for name, sem in (("half_width", "sem"), ("half_width_normalized", "sem_normalized"))
    }
    mean = pl.col("mean")
    ranked = (
        rows.with_columns(
            **widths,
            name=pl.format("L{}H{}", "layer", "head"),
            share=(mean / mean.abs().max()).fill_nan(0.0),
        )
        .sort(mean.abs(), "layer", "head", descending=[True, False, False])
        .head(_MOST_ROWS)
    )
    if quantity.normalized:
        # A negative gap reverses signs; the bar goes with the number beside it.
        sign = pl.col("mean_normalized").sign() * mean.sign()
        ranked = ranked.with_columns(share=pl.col("share") * sign)
    fields = tuple(RankedHead.__dataclass_fields__)
    return Ranking(
        at=at,
        of=len(rows),
        n_groups=int(groups.max()),
        rows=[RankedHead(**row) for row in ranked.select(fields).iter_rows(named=True)],
    )
