"""One heatmap as a figure of its own, for a notebook or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.report.drawing.figures import Panel, Quantity, build_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WHERE = {"last": "at the last position", "all": "summed over positions", "position": "by position"}


def draw_map(rows: pl.DataFrame, component: str, at: str, *, normalized: bool) -> go.Figure:
    """Draw the means of one cell as a map of (layer, head) or (layer, position).

    Args:
        rows: rows of one cell and component of the ``heads`` summary at one place, or of ``positions``.
        component: the component, for the title.
        at: where they were taken: ``last``, ``all``, a role, or ``position``.
        normalized: draw shares of the gap between clean and corrupted metric where there is one; raw means otherwise.
    """
    column = "position" if at == "position" else "head"
    if column == "head" and rows.get_column("head").null_count() == len(rows):
        column, rows = "role", rows.with_columns(role=pl.lit(at))
    normalized = normalized and rows.get_column("mean_normalized").null_count() < len(rows)
    panel = Panel(rows, column, f"{component}, {_WHERE.get(at, f'at “{at}”')}", "")
    quantity = Quantity(normalized=normalized, unit="metric units")
    figure = build_heatmap(panel, quantity)
    bar = {"title": {"text": quantity.label, "side": "right"}}
    figure.update_layout(title=panel.title, margin={"t": 48}, coloraxis={"showscale": True, "colorbar": bar})
    return figure
