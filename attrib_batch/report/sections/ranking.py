"""The answer of a cell: its strongest heads, or layers, with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.report.drawing.maps import picked
from attrib_batch.spec import Component
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from attrib_batch.report.drawing.figures import Quantity

MOST_ROWS = 15
_NAMED_BESIDE = 3
_OF_WHICH = 5
END = "end"


@dataclass(frozen=True)
class RankedHead:
    """One row of the table; None where a number does not exist."""

    layer: int
    head: int | None
    value: float
    """Normalised where the cell can be normalised, in metric units otherwise; ``low`` and ``high`` likewise."""
    low: float | None
    high: float | None
    mean: float
    """In metric units."""
    std: float | None
    q_bh: float | None
    survives: bool | None
    share_positive: float | None
    n_pairs: int
    dot: float
    """Where the value stands on the axis of the table, in percent from the left; 50 is 0."""
    line: tuple[float, float] | None
    """Where its interval does."""

    @property
    def name(self) -> str:
        """``L9H9`` for layer 9, head 9; ``L9`` for a component without heads."""
        return f"L{self.layer}" if self.head is None else f"L{self.layer}H{self.head}"

    @property
    def is_clear(self) -> bool:
        """Whether it differs from 0: by the summary's test, or else by its interval."""
        if self.survives is not None:
            return self.survives
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def key(self) -> int:
        """A number to sort names by."""
        return self.layer * 100_000 + (self.head or 0)


@dataclass(frozen=True)
class Ranking:
    """The heads with the largest absolute mean."""

    at: str
    """Where the scores were taken, as a phrase."""
    kind: str
    """What is ranked: head or layer."""
    scope: str
    role: str | None
    of: int
    n_groups: int
    rows: list[RankedHead]
    survivors: int | None
    """How many differ from 0 with correction for testing all of them; None where the summary has no such tests."""
    clear: int | None
    """How many have an interval without 0; None where none has an interval."""
    share: float | None
    """The share of the sum of absolute means that the five strongest hold; None where there are hardly more, and for
    the residual stream, whose layers contain each other."""
    tested: bool
    """Whether the summary tests every head against 0, with correction for testing all of them."""

    @property
    def beside(self) -> list[RankedHead]:
        """Those that are named behind the strongest, as far as they are clear of 0."""
        return [row for row in self.rows[1:_NAMED_BESIDE] if row.is_clear]

    @property
    def same_pairs(self) -> bool:
        """Whether every row is over equally many pairs."""
        return len({row.n_pairs for row in self.rows}) < 2

    @property
    def all_zero(self) -> bool:
        """Whether every mean is 0."""
        return not self.rows or self.rows[0].mean == 0


def at_best(heads: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Choose the rows of one component to rank, and say where they are.

    These are those at the role ``end``; without it at the last position, or else at all there are.
    """
    at_end = heads.filter((pl.col("scope") == Scope.ROLE) & (pl.col("role") == END))
    at_last = heads.filter(pl.col("scope") == Scope.LAST)
    at_all = heads.filter(pl.col("scope") == Scope.ALL)
    choices = ((at_end, f"“{END}”"), (at_last, "the last position"), (at_all, "the positions that were asked for"))
    return next(((rows, at) for rows, at in choices if len(rows)), (at_all, "the positions that were asked for"))


def rank_heads(heads: pl.DataFrame, quantity: Quantity) -> Ranking:
    """Rank one component's heads, or layers; rows have intervals, see `attrib_batch.report.sections.intervals`."""
    rows, at = at_best(heads)
    rows = picked(rows, quantity)
    ranked = rows.sort(pl.col("mean").abs(), "layer", "head", descending=[True, False, False])
    sizes = ranked.get_column("mean").abs()
    total, top = float(sizes.sum()), ranked.head(MOST_ROWS).to_dicts()
    reach = max((abs(row[key]) for row in top for key in ("value", "low", "high") if row[key] is not None), default=0)
    has_share = total > 0 and len(rows) > 2 * _OF_WHICH and not Component(rows.get_column("component")[0]).is_stream
    with_interval = rows.drop_nulls(["low", "high"])
    clear = with_interval.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    return Ranking(
        at=at,
        kind="head" if rows.get_column("head").null_count() == 0 else "layer",
        scope=str(rows.get_column("scope")[0]) if len(rows) else Scope.ALL.value,
        role=rows.get_column("role")[0] if len(rows) else None,
        of=len(rows),
        n_groups=int(rows.get_column("n_groups").max() or 0) if len(rows) else 0,  # type: ignore[arg-type]  # integers here
        rows=[_row(row, reach or 1.0) for row in top],
        survivors=_survivors(rows),
        clear=len(clear) if len(with_interval) else None,
        share=float(sizes.head(_OF_WHICH).sum()) / total if has_share else None,
        tested="q_bh" in heads.columns,
    )


def _survivors(rows: pl.DataFrame) -> int | None:
    if "survives" not in rows.columns or rows.get_column("survives").null_count() == len(rows):
        return None
    return int(rows.get_column("survives").sum())


def _row(row: dict[str, Any], reach: float) -> RankedHead:
    ends = row["low"], row["high"]
    line = None if None in ends else (_percent(ends[0], reach), _percent(ends[1], reach))
    names = ("layer", "head", "value", "low", "high", "mean", "std", "share_positive", "n_pairs")
    return RankedHead(
        **{name: row.get(name) for name in names},  # type: ignore[arg-type]  # columns of a summary
        q_bh=row.get("q_bh"),
        survives=row.get("survives"),
        dot=_percent(row["value"], reach),
        line=line,
    )


def _percent(value: float, reach: float) -> float:
    return 50 + 48 * value / reach
