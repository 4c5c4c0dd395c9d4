"""Heatmaps of mean scores as Plotly figures, for notebooks and files; those of a page are specified in `maps`.

Colours follow the attribution-patching tutorial: RdBu centred on 0, blue for positive, red for negative.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import polars as pl

from attrib_batch.analysis import half_width

if TYPE_CHECKING:
    from collections.abc import Sequence

# plotly.js has a colour scale "RdBu" of its own, which runs the other way: the colours are spelt out.
RDBU = (
    "rgb(103,0,31)", "rgb(178,24,43)", "rgb(214,96,77)", "rgb(244,165,130)", "rgb(253,219,199)",
    "rgb(247,247,247)", "rgb(209,229,240)", "rgb(146,197,222)", "rgb(67,147,195)", "rgb(33,102,172)",
    "rgb(5,48,97)",
)  # fmt: skip

FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": "#444"}
"""Of every figure."""

_MOST_LABELLED = 24
_CROP_BEYOND = 64


@dataclass(frozen=True)
class Quantity:
    """What a page's colours stand for."""

    normalized: bool
    unit: str
    """The metric's unit, for raw scores."""

    @property
    def mean(self) -> str:
        """The column of a summary that is drawn."""
        return "mean_normalized" if self.normalized else "mean"

    @property
    def sem(self) -> str:
        """The standard error of that column."""
        return "sem_normalized" if self.normalized else "sem"

    @property
    def label(self) -> str:
        """What the colour bar says."""
        return "mean score, normalised" if self.normalized else f"mean score, {self.unit}"


@dataclass(frozen=True)
class Panel:
    """The numbers of one heatmap: rows of a summary, one per layer and column."""

    rows: pl.DataFrame
    column: str
    """``head``, ``position`` or ``role``."""
    title: str
    caption: str
    compact: bool = False
    """Drawn small, beside others: fewer labels on the axes."""

    def limit(self, quantity: Quantity) -> float:
        """Return the largest absolute mean, 0 where there is none."""
        largest = self.rows.get_column(quantity.mean).abs().max()
        return float(largest) if isinstance(largest, int | float) else 0.0


def build_heatmap(panel: Panel, quantity: Quantity, *, limit: float | None = None) -> go.Figure:
    """Build the Plotly figure of a heatmap.

    Args:
        panel: the numbers.
        quantity: which of them are drawn.
        limit: the end of the colour scale; the panel's own largest value where absent.
    """
    limit = panel.limit(quantity) if limit is None else limit
    rows, labels = _cropped(panel.rows, panel.column, quantity.mean)
    layers = list(range(int(rows.get_column("layer").to_numpy().max()) + 1)) if len(rows) else []
    cube = _cube(rows, panel.column, labels, _statistics(rows, quantity), len(layers))
    names = [html.escape(label) if isinstance(label, str) else label for label in labels]
    trace = go.Heatmap(
        z=cube[..., 0],
        customdata=cube[..., 1:],
        x=names,
        y=layers,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=_hover(panel.column, quantity),
        xgap=1 if len(labels) <= _CROP_BEYOND else 0,
        ygap=1 if len(labels) <= _CROP_BEYOND else 0,
    )
    return go.Figure(trace, _layout(panel, labels, layers, limit))


def _statistics(rows: pl.DataFrame, quantity: Quantity) -> pl.DataFrame:
    """Select what hovering shows, the drawn mean first."""
    width = half_width(
        rows.get_column(quantity.sem).cast(pl.Float64).to_numpy(), rows.get_column("n_groups").to_numpy()
    )
    drawn = pl.col(quantity.mean).alias("drawn")
    others = ("mean", "sem", "std", "min", "max", "n_pairs", "n_groups")
    return rows.select(drawn, pl.Series("width", width), *others)


def _cube(
    rows: pl.DataFrame, column: str, labels: Sequence[int | str], statistics: pl.DataFrame, n_layers: int
) -> np.ndarray:
    """Arrange statistics as an array (layer, column, statistic); NaN where a row is missing.

    float32 halves the page, and seven digits are more than anyone hovers for.
    """
    place = {label: index for index, label in enumerate(labels)}
    cube = np.full((n_layers, len(labels), statistics.width), np.nan, dtype=np.float32)
    columns = [place[label] for label in rows.get_column(column)]
    cube[rows.get_column("layer").to_numpy(), columns] = statistics.cast(pl.Float32).to_numpy()
    return cube


def _cropped(rows: pl.DataFrame, column: str, value: str) -> tuple[pl.DataFrame, list[int | str]]:
    """Choose the rows to draw and the labels of their columns.

    Long prompts lose the columns before the first and after the last non-zero one: before the first
    difference of any pair every score is exactly 0, and those columns would push the others together.
    """
    if column == "role":
        return rows, rows.get_column("role").unique(maintain_order=True).to_list()
    last = int(rows.get_column(column).to_numpy().max()) if len(rows) else -1
    if last < _CROP_BEYOND:
        return rows, list(range(last + 1))
    nonzero = rows.filter(pl.col(value) != 0).get_column(column).to_numpy()
    if not len(nonzero):
        return rows, list(range(last + 1))
    first, last = int(nonzero.min()), int(nonzero.max())
    return rows.filter(pl.col(column).is_between(first, last)), list(range(first, last + 1))


def _hover(column: str, quantity: Quantity) -> str:
    name = {"head": "L%{y}H%{x}", "position": "L%{y}, position %{x}", "role": "L%{y}, %{x}"}[column]
    first = "normalised" if quantity.normalized else f"mean ({quantity.unit})"
    return (
        f"<b>{name}</b><br>{first} %{{z:+.3r}} ± %{{customdata[0]:.3r}} (95%)<br>"
        f"raw mean %{{customdata[1]:+.3r}} {quantity.unit}, sem %{{customdata[2]:.3r}}<br>"
        "std %{customdata[3]:.3r}, from %{customdata[4]:+.3r} to %{customdata[5]:+.3r}<br>"
        "%{customdata[6]:,d} pairs in %{customdata[7]:,d} sampling units<extra></extra>"
    )


def _layout(panel: Panel, labels: Sequence[int | str], layers: Sequence[int], limit: float) -> go.Layout:
    titles = {"head": "head", "position": "token position", "role": None}
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "fixedrange": False}
    horizontal = {**axis, "title": {"text": titles[panel.column], "standoff": 8}, "constrain": "domain"}
    if panel.column == "role":
        horizontal["type"] = "category"
    elif len(labels) <= _MOST_LABELLED and not panel.compact:
        horizontal["dtick"] = 1
    vertical = {**axis, "title": {"text": "layer", "standoff": 4}, "autorange": "reversed"}
    if len(layers) <= _MOST_LABELLED and not panel.compact:
        vertical["dtick"] = 1
    return go.Layout(
        template="none",
        height=min(max((16 if panel.compact else 22) * len(layers) + 60, 220), 640),
        margin={"l": 46, "r": 6, "t": 6, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=FONT,
        xaxis=horizontal,
        yaxis=vertical,
        coloraxis={
            "colorscale": [[index / 10, colour] for index, colour in enumerate(RDBU)],
            "cmin": -(limit or 1.0),
            "cmax": limit or 1.0,
            "showscale": False,
        },
    )
