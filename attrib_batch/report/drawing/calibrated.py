"""A figure of mean effects as several things know them: estimates, the measured sample, both together, and refined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
import polars as pl

from attrib_batch.report.drawing.scatter import BLUE, GREEN, GREY, GRID, RED, head_name, layout_of, numbers, plot

if TYPE_CHECKING:
    from attrib_batch.report.drawing.maps import Figure, Target
    from attrib_batch.report.drawing.scatter import Axes

_ROW, _AROUND = 22, 70
"""Height of a head, and of what is around them."""
_APART = 0.22
"""How far the marks of one head stand apart, in heads."""


def draw_calibrated(rows: pl.DataFrame, axes: Axes, *, div_id: str, title: str, caption: str, target: Target) -> Figure:
    """Draw one line per head, the strongest first.

    Args:
        rows: ``layer, head, estimate, exact, exact_half_width, mean, low, high, refined``; ``mean, low, high`` are
            calibrated, and ``refined`` is null where the run does not have it.
        axes: what values stand for.
        div_id: the figure's id, unique in the page.
        title: of the figure.
        caption: of the figure.
        target: whose heads they are.
    """
    names = [head_name(row) for row in rows.select("layer", "head").iter_rows(named=True)]
    keys = rows.select("layer", pl.col("head").fill_null(-1))
    half = (rows["high"] - rows["low"]) / 2
    known = [
        ("estimate", rows["estimate"], None, RED, "x-thin-open", 8),
        ("exact, measured pairs", rows["exact"], rows["exact_half_width"], GREY, "circle-open", 6),
        ("calibrated", rows["mean"], half, BLUE, "circle", 7),
    ]
    if rows["refined"].null_count() < len(rows):
        known.append(("refined", rows["refined"], None, GREEN, "cross-thin-open", 9))
    traces = []
    for index, (name, values, around, colour, symbol, size) in enumerate(known):
        bars = (
            None
            if around is None
            else {"array": numbers(around.fill_null(0.0)), "color": colour, "thickness": 1.5, "width": 3}
        )
        spread = "" if around is None else " ± %{error_x.array:.3r} (95%)"
        traces.append(
            go.Scatter(
                x=numbers(values),
                y=[place + _APART * (index - (len(known) - 1) / 2) for place in range(len(names))],
                name=name,
                customdata=keys.to_numpy(),
                text=names,
                mode="markers",
                error_x=bars,
                marker={"size": size, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
                hovertemplate=f"<b>%{{text}}</b>, {name}<br>%{{x:+.3r}}{spread}<extra></extra>",
            )
        )
    axis = {"gridcolor": GRID, "zerolinecolor": GREY, "zerolinewidth": 1, "ticks": ""}
    layout = layout_of(
        _AROUND + _ROW * len(names),
        margin={"l": 60, "r": 6, "t": 6, "b": 44},
        xaxis={**axis, "title": {"text": f"mean effect, {axes.unit}", "standoff": 8}},
        yaxis={
            "tickmode": "array",
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "zeroline": False,
        },
    )
    return plot(go.Figure(traces, layout), (div_id, title, caption), target)
