"""How many pairs are enough: the agreement of subsamples, as one curve and one sentence."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from attrib_batch.report.drawing.scatter import GRID, layout_of, plot
from attrib_batch.report.formats import percent, plain
from attrib_batch.report.tokens import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from attrib_batch.report.drawing.maps import Figure
    from attrib_batch.report.sections.ranking import Ranking
    from attrib_batch.spec import Cell

_ENOUGH = 0.9
_TOP = 10
"""How many of the strongest are compared, where the table has several."""
_BLUE, _BAND, _ORANGE = "rgb(67,147,195)", "rgba(67,147,195,0.22)", "rgb(214,96,77)"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of several curves (Okabe, Ito 2008): they can be told apart by colour-blind readers, and on a dark page."""
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
_AXIS = {"gridcolor": GRID, "zeroline": False, "ticks": ""}
_HEIGHT, _MARGIN = 300, {"l": 52, "r": 10, "t": 8, "b": 44}
_COLUMNS = ("n_pairs", "top_k", "overlap", "overlap_low", "overlap_high", "spearman")


@dataclass(frozen=True)
class Stability:
    """The agreement of subsamples of one component's heads."""

    sentence: str
    figure: Figure | None
    """None where there is one number of pairs alone, which is no curve."""
    rows: list[dict[str, float | int | None]]
    """The numbers of the curve."""


def build_stability(
    table: pl.DataFrame | None, cell: Cell, component: str, ranking: Ranking, div_id: str
) -> Stability | None:
    """Draw the curve of one component; None where the table says nothing of it."""
    if table is None:
        return None
    curve = _curve_of(table, cell, component, ranking.scope)
    if curve.is_empty():
        return None
    found = curve.select(_COLUMNS).to_dicts()
    figure = plot(_curve(curve), _words(div_id, found)) if len(found) > 1 else None
    return Stability(_sentence(found, ranking.kind), figure, found)


def draw_cells(
    table: pl.DataFrame, cells: Sequence[tuple[str, Cell, str]], component: str, div_id: str
) -> Figure | None:
    """Draw the curves of several cells in one figure; None where fewer than two have one, or all are of one point.

    Args:
        table: the ``stability`` summary.
        cells: of each what it is called, the cell, and the scope in which its heads are ranked.
        component: whose heads.
        div_id: the figure's id, unique in the page.
    """
    curves = [(label, _curve_of(table, cell, component, scope)) for label, cell, scope in cells]
    curves = [(label, curve) for label, curve in curves if len(curve)]
    if len(curves) < 2 or max(len(curve) for _, curve in curves) < 2:
        return None
    traces = []
    for index, (label, curve) in enumerate(curves):
        # Curves may coincide, as those of noising and denoising do where pairs are mirrored: those behind are broader.
        behind = 1 - index / (len(curves) - 1)
        line = {
            "color": _COLOURS[index % len(_COLOURS)],
            "width": 1.5 + 3 * behind,
            "dash": _DASHES[index // len(_COLOURS) % len(_DASHES)],
        }
        name = html.escape(shown(label))
        traces.append(
            go.Scatter(
                x=curve.get_column("n_pairs").to_list(),
                y=curve.get_column("overlap").to_list(),
                customdata=curve.select("top_k", "overlap_low", "overlap_high").to_numpy(),
                name=name,
                mode="lines+markers",
                line=line,
                marker={"size": 5 + 8 * behind, "symbol": _SYMBOLS[index % len(_SYMBOLS)]},
                hovertemplate=(
                    f"<b>{name}</b><br>%{{x:,}} pairs: %{{y:.1%}} of the top %{{customdata[0]:d}}"
                    "<br>95% of samples %{customdata[1]:.1%} to %{customdata[2]:.1%}<extra></extra>"
                ),
            )
        )
    n = sorted({size for _, curve in curves for size in curve.get_column("n_pairs").to_list()})
    # Cells have their own sizes: those that would run into each other get no label.
    labelled = [size for index, size in enumerate(n) if index == 0 or size > 1.15 * n[index - 1]]
    layout = layout_of(
        _HEIGHT + 20 * len(curves),
        margin=_MARGIN,
        showlegend=True,
        legend={"orientation": "v", "x": 0, "xanchor": "left", "y": -60 / (_HEIGHT - 52), "yanchor": "top"},
        xaxis=_pairs_axis(labelled),
        yaxis=_agreement_axis(0.0),
    )
    layout.margin.b = 52 + 20 * len(curves)
    sizes = sorted({int(size) for _, curve in curves for size in curve.get_column("top_k").to_list()})
    caption = (
        f"Share of the {' or '.join(map(str, sizes))} strongest that two samples of so many pairs of one cell have in "
        "common."
    )
    return plot(go.Figure(traces, layout), (div_id, "How many pairs are enough", caption))


def _curve_of(table: pl.DataFrame, cell: Cell, component: str, scope: str) -> pl.DataFrame:
    """Return the rows of one curve, by the number of pairs: of the scope that is ranked, or else of another."""
    rows = table.filter(model=cell.model, dataset=cell.dataset, method=cell.method, component=component).drop_nulls(
        "overlap"
    )
    if rows.is_empty():
        return rows
    scopes = rows.get_column("scope").unique().sort().to_list()
    of_scope = rows.filter(scope=next(name for name in (scope, "last", *scopes) if name in scopes))
    sizes = of_scope.get_column("top_k").unique().to_list()
    return of_scope.filter(top_k=_TOP if _TOP in sizes else max(sizes)).sort("n_pairs")


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
    if not below:
        if len(rows) == 1:
            return found
        fewest = f"those of {enough[0]:,} pairs, the fewest that were compared"
        return f"{found} Even {fewest}, share {percent(_ENOUGH)} or more."
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
    lowest = min([0.0, *(value for value in spearman if value is not None)])
    layout = layout_of(_HEIGHT, margin=_MARGIN, xaxis=_pairs_axis(n), yaxis=_agreement_axis(lowest))
    return go.Figure(traces, layout)


def _pairs_axis(labelled: list[int]) -> dict[str, Any]:
    return {
        **_AXIS,
        "type": "log",
        "title": {"text": "pairs", "standoff": 8},
        "tickvals": labelled,
        "ticktext": [f"{size:,}" for size in labelled],
    }


def _agreement_axis(lowest: float) -> dict[str, Any]:
    return {**_AXIS, "range": [lowest, 1.02], "title": {"text": "agreement", "standoff": 4}}
