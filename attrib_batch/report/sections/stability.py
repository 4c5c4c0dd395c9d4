"""How many pairs are enough: the agreement of subsamples, as one curve and one sentence."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import polars as pl

from attrib_batch.report.drawing.figures import FONT
from attrib_batch.report.drawing.scatter import plot
from attrib_batch.report.formats import percent, plain

if TYPE_CHECKING:
    from attrib_batch.report.drawing.maps import Figure
    from attrib_batch.report.sections.ranking import Ranking
    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store

_FILE = "summary/stability.parquet"
_ENOUGH = 0.9
_TOP = 10
"""How many of the strongest are compared, where the table has several."""
_BLUE, _BAND, _ORANGE = "rgb(67,147,195)", "rgba(67,147,195,0.22)", "rgb(214,96,77)"
_GRID = "rgba(128,138,150,0.22)"
_COLUMNS = ("n_pairs", "top_k", "overlap", "overlap_low", "overlap_high", "spearman")


@dataclass(frozen=True)
class Stability:
    """The agreement of subsamples of one component's heads."""

    sentence: str
    figure: Figure
    rows: list[dict[str, float | int | None]]
    """The numbers of the curve."""


def read_stability(store: Store) -> pl.DataFrame | None:
    """Read the table of subsamples; None for a summary that has none."""
    return pl.read_parquet(io.BytesIO(store.read_bytes(_FILE))) if store.exists(_FILE) else None


def build_stability(
    table: pl.DataFrame | None, cell: Cell, component: str, ranking: Ranking, div_id: str
) -> Stability | None:
    """Draw the curve of one component; None where the table says nothing of it."""
    if table is None:
        return None
    rows = table.filter(model=cell.model, dataset=cell.dataset, method=cell.method, component=component).drop_nulls(
        "overlap"
    )
    scopes = rows.get_column("scope").unique().sort().to_list()
    if not scopes:
        return None
    scope = next((name for name in (ranking.scope, "last") if name in scopes), scopes[0])
    of_scope = rows.filter(pl.col("scope") == scope)
    sizes = of_scope.get_column("top_k").unique().sort().to_list()
    curve = of_scope.filter(pl.col("top_k") == (_TOP if _TOP in sizes else sizes[-1])).sort("n_pairs")
    found = curve.select(_COLUMNS).to_dicts()
    return Stability(_sentence(found, ranking.kind), plot(_curve(curve), _words(div_id, found)), found)


def _words(div_id: str, rows: list[dict[str, float | int | None]]) -> tuple[str, str, str]:
    top = rows[-1]["top_k"]
    caption = (
        f"Blue: share of the {top} strongest that two samples of so many pairs have in common, with its 95% range. "
        "Red, dotted: Spearman correlation of all means."
    )
    return div_id, "How many pairs are enough", caption


def _sentence(rows: list[dict[str, float | int | None]], kind: str) -> str:
    last = rows[-1]
    interval = (
        f" ({percent(last['overlap_low'])} to {percent(last['overlap_high'])})"
        if last["overlap_low"] is not None and last["overlap_high"] is not None
        else ""
    )
    rank = (
        f", and the ranks of all {kind}s correlate at {plain(last['spearman'], 2)}"
        if last["spearman"] is not None
        else ""
    )
    found = (
        f"Samples of {last['n_pairs']:,} pairs share {percent(last['overlap'])}{interval} of their {last['top_k']} "
        f"strongest {kind}s{rank}."
    )
    # From where on it stays above, not where it first happens to be.
    below = [row["n_pairs"] or 0 for row in rows if (row["overlap"] or 0) < _ENOUGH]
    enough = [row["n_pairs"] or 0 for row in rows if (row["n_pairs"] or 0) > max(below, default=0)]
    if enough:
        return f"{found} From {enough[0]:,} pairs on they share at least {percent(_ENOUGH)}."
    return f"{found} That is less than {percent(_ENOUGH)}: more pairs would change which {kind}s are named."


def _curve(rows: pl.DataFrame) -> go.Figure:
    n = rows.get_column("n_pairs").to_list()
    low, high, overlap, spearman = (
        rows.get_column(name).to_list() for name in ("overlap_low", "overlap_high", "overlap", "spearman")
    )
    line = {"width": 0}
    traces = [
        go.Scatter(x=n, y=high, mode="lines", line=line, hoverinfo="skip"),
        go.Scatter(x=n, y=low, mode="lines", line=line, fill="tonexty", fillcolor=_BAND, hoverinfo="skip"),
        go.Scatter(
            x=n,
            y=overlap,
            mode="lines+markers",
            line={"color": _BLUE, "width": 2},
            hovertemplate="%{x:,} pairs: overlap %{y:.1%}<extra></extra>",
        ),
        go.Scatter(
            x=n,
            y=spearman,
            mode="lines+markers",
            line={"color": _ORANGE, "width": 1.5, "dash": "dot"},
            marker={"size": 4},
            hovertemplate="%{x:,} pairs: Spearman %{y:.3f}<extra></extra>",
        ),
    ]
    axis = {"gridcolor": _GRID, "zeroline": False, "ticks": ""}
    layout = go.Layout(
        height=300,
        margin={"l": 52, "r": 10, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=FONT,
        showlegend=False,
        hovermode="closest",
        xaxis={
            **axis,
            "type": "log",
            "title": {"text": "pairs", "standoff": 8},
            "tickvals": n,
            "ticktext": [f"{x:,}" for x in n],
        },
        yaxis={
            **axis,
            "range": [min([0.0, *(s for s in spearman if s is not None)]), 1.02],
            "title": {"text": "agreement", "standoff": 4},
        },
    )
    return go.Figure(traces, layout)
