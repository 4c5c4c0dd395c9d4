"""Whether the strongest heads serve every wording: their means by template and by task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.report.drawing.maps import Axis, Detail, Figure, MapAxes, Target, draw_map
from attrib_batch.report.sections.intervals import with_intervals
from attrib_batch.tables import Scope, StratumKind

if TYPE_CHECKING:
    from attrib_batch.report.sections.ranking import Ranking
    from attrib_batch.report.sections.where import CellView

MOST_HEADS = 10
MOST_STRATA = 40


@dataclass(frozen=True)
class Strata:
    """The strongest heads by template, or by task."""

    kind: str
    figure: Figure
    n_strata: int
    narrow: list[tuple[int, int, int]]
    """Layer, head and number of strata of the heads that are clear of 0 in fewer than half of them."""
    judged: int
    """Strata with an interval, of which the half is meant."""


def draw_strata(view: CellView, strata: pl.DataFrame, ranking: Ranking) -> list[Strata]:
    """Draw the ranked heads by template and by task, for each of which there are several.

    Args:
        view: what is drawn.
        strata: the component's rows of the summary.
        ranking: the heads.
    """
    if ranking.kind != "head" or ranking.all_zero or view.detail is Detail.CORE:
        return []
    return [found for kind in StratumKind if (found := _of_kind(view, strata, ranking, kind)) is not None]


def _of_kind(view: CellView, strata: pl.DataFrame, ranking: Ranking, kind: StratumKind) -> Strata | None:
    scope = Scope.ALL if ranking.scope == Scope.ALL else Scope.LAST
    rows = strata.filter(pl.col("kind") == kind, pl.col("scope") == scope)
    names = rows.get_column("stratum").unique().sort().to_list()
    if len(names) < 2:
        return None
    drawn = names[:MOST_STRATA]
    heads = [(row.layer, row.head or 0) for row in ranking.rows[:MOST_HEADS]]
    placed = (
        with_intervals(rows)
        .join(_places("y", ["layer", "head"], heads), on=["layer", "head"])
        .join(pl.DataFrame({"stratum": drawn, "x": range(len(drawn))}, schema_overrides={"x": pl.Int64}), on="stratum")
    )
    divisor = view.gap or 1.0
    values = placed.with_columns(
        value=pl.col("mean") / divisor,
        low=pl.min_horizontal(pl.col("low") / divisor, pl.col("high") / divisor),
        high=pl.max_horizontal(pl.col("low") / divisor, pl.col("high") / divisor),
    )
    # Of heads that are noise some template is always an exception.
    sure = {(row.layer, row.head) for row in ranking.rows if row.is_clear}
    narrow, judged = _narrow(values, heads)
    narrow = [found for found in narrow if found[:2] in sure]
    where = "summed over positions" if scope is Scope.ALL else "at the last position"
    more = f"; the first {MOST_STRATA} of {len(names)} {kind}s" if len(names) > MOST_STRATA else ""
    figure = draw_map(
        values,
        MapAxes(drawn, [f"L{layer}H{head}" for layer, head in heads], Axis.STRATUM, Axis.HEAD),
        div_id=f"cell-{view.index}-{view.component}-{kind}s",
        title=f"The strongest heads, by {kind}",
        caption=f"Mean {where} over the pairs of each {kind}{more}.",
        label=view.quantity.label,
        unit=view.quantity.unit,
        factor=view.gap,
        detail=view.detail,
        target=Target(view.index, view.component),
    )
    return Strata(str(kind), figure, len(names), narrow, judged)


def _places(name: str, keys: list[str], heads: list[tuple[int, int]]) -> pl.DataFrame:
    rows = [(*head, index) for index, head in enumerate(heads)]
    schema = {**dict.fromkeys(keys, pl.Int16), name: pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _narrow(values: pl.DataFrame, heads: list[tuple[int, int]]) -> tuple[list[tuple[int, int, int]], int]:
    """Find the heads whose intervals exclude 0 in fewer than half of the strata, but in some."""
    with_interval = values.drop_nulls(["low", "high"])
    judged = with_interval.get_column("stratum").n_unique()
    clear = with_interval.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    counts = dict(clear.group_by("y").agg(pl.len()).iter_rows())
    narrow = [(*head, counts[place]) for place, head in enumerate(heads) if 0 < counts.get(place, 0) < judged / 2]
    return narrow, judged
