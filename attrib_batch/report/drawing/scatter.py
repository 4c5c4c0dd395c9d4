"""Scatter plots of estimates against exact scores, as Plotly figures that the page's script draws."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from attrib_batch.report.drawing.figures import FONT
from attrib_batch.report.drawing.maps import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.report.drawing.maps import Target

# Mid tones of the maps' blue and red: they stand out from a white page and from a dark one.
BLUE, RED, GREY = "rgb(67,147,195)", "rgb(214,96,77)", "rgb(138,148,160)"
GREEN = "rgb(0,158,115)"
GRID = "rgba(128,138,150,0.22)"
"""The colour of lines behind a plot."""
_HEIGHT = 430
_MOST_LABELS = 7


@dataclass(frozen=True)
class Axes:
    """What the two axes of a scatter plot stand for."""

    unit: str
    magnitudes: bool
    """Whether both axes are absolute values."""

    @property
    def exact(self) -> str:
        """The title of the horizontal axis."""
        return f"|exact|, {self.unit}" if self.magnitudes else f"exact, {self.unit}"

    @property
    def estimate(self) -> str:
        """The title of the vertical axis."""
        return f"estimate, {self.unit}"


def draw_scores(points: pl.DataFrame, axes: Axes, *, div_id: str, title: str, caption: str, target: Target) -> Figure:
    """Draw one point per (pair, layer, head).

    Args:
        points: ``pair_id, layer, head, position, exact, estimate``; ``head`` null without heads.
        axes: what is drawn.
        div_id: the figure's id, unique in the page.
        title: of the figure.
        caption: of the figure.
        target: whose heads they are.
    """
    name = _name(points)
    trace = go.Scatter(
        x=numbers(points["exact"]),
        y=numbers(points["estimate"]),
        customdata=points.select("layer", pl.col("head").fill_null(-1), "position", "pair_id").to_numpy(),
        mode="markers",
        marker={"size": 5, "color": BLUE, "opacity": 0.45},
        hovertemplate=(
            f"<b>{name}</b>, pair %{{customdata[3]:d}}, position %{{customdata[2]:d}}<br>"
            "exact %{x:+.3r}<br>estimate %{y:+.3r}<extra></extra>"
        ),
    )
    return _drawn([trace], points, axes, (div_id, title, caption), target)


def draw_means(
    effects: pl.DataFrame, marked: pl.DataFrame, axes: Axes, *, div_id: str, title: str, caption: str, target: Target
) -> Figure:
    """Draw one point per head.

    Args:
        effects: as from `attrib_batch.analysis.mean_effects`, of one component.
        marked: those of its rows that are drawn in red.
        axes: what is drawn.
        div_id: the figure's id, unique in the page.
        title: of the figure.
        caption: of the figure.
        target: whose heads they are.
    """
    keys = ("layer", "head")
    labels = _labels(effects, marked)
    traces = []
    for rows, colour in (
        (effects.join(marked, on=keys, how="anti", nulls_equal=True), BLUE),
        (effects.join(marked, on=keys, how="semi", nulls_equal=True), RED),
    ):
        columns = rows.select("layer", pl.col("head").fill_null(-1), "difference", "half_width")
        below = (rows.get_column("estimate") < rows.get_column("exact")).to_list()
        traces.append(
            go.Scatter(
                x=numbers(rows["exact"]),
                y=numbers(rows["estimate"]),
                customdata=columns.cast(pl.Float32).to_numpy(),
                text=[labels.get(key, "") for key in rows.select(keys).iter_rows()],
                # Away from the line, where the other points are.
                textposition=["bottom right" if under else "top left" for under in below],
                textfont={"size": 11},
                cliponaxis=False,
                mode="markers+text",
                marker={"size": 7, "color": colour, "opacity": 0.75},
                hovertemplate=(
                    f"<b>{_name(effects)}</b><br>mean exact %{{x:+.3r}}<br>mean estimate %{{y:+.3r}}<br>"
                    "difference %{customdata[2]:+.3r} ± %{customdata[3]:.3r} (95%)<extra></extra>"
                ),
            )
        )
    return _drawn(traces, effects, axes, (div_id, title, caption), target)


def plot(figure: go.Figure, words: tuple[str, str, str], target: Target | None = None) -> Figure:
    """Make a figure of a page out of a Plotly figure; ``words`` are its id, its title and its caption.

    Where there is a target, the first two numbers that each point carries are its layer and its head.
    """
    drawn = json.loads(figure.to_json())
    layout = drawn["layout"]
    layout.pop("template", None)
    spec = {"kind": "plot", "data": drawn["data"], "layout": layout, "height": layout["height"]}
    if target is not None:
        spec["target"] = [target.cell, target.component]
    return Figure(*words, spec)


def layout_of(height: int, **more: Any) -> go.Layout:
    """Return what all plots have in common: no background of their own, so that a dark page shows through."""
    common = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": FONT, "hovermode": "closest"}
    return go.Layout(**{"template": "none", "height": height, "showlegend": False, **common, **more})


def head_name(row: Mapping[str, int | None]) -> str:
    """``L9H9`` for layer 9, head 9; ``L9`` for a component without heads."""
    return f"L{row['layer']}" if row["head"] is None else f"L{row['layer']}H{row['head']}"


def _labels(effects: pl.DataFrame, marked: pl.DataFrame) -> dict[tuple[int, int | None], str]:
    """Choose the names to write: of the heads furthest off and of the strongest, as far as they do not overlap."""
    strongest = effects.sort(pl.col("exact").abs(), descending=True).head(_MOST_LABELS)
    chosen = pl.concat([marked.head(_MOST_LABELS // 2), strongest])
    values = effects.select("exact", "estimate").to_numpy()
    reach = float(np.ptp(values)) if len(values) else 0.0
    labels: dict[tuple[int, int | None], str] = {}
    taken: list[tuple[float, float]] = []
    for row in chosen.iter_rows(named=True):
        x, y = row["exact"], row["estimate"]
        if all(abs(x - other_x) > 0.2 * reach or abs(y - other_y) > 0.05 * reach for other_x, other_y in taken):
            labels[row["layer"], row["head"]] = head_name(row)
            taken.append((x, y))
    return labels


def _name(rows: pl.DataFrame) -> str:
    has_heads = rows.get_column("head").null_count() == 0
    return "L%{customdata[0]}H%{customdata[1]}" if has_heads else "L%{customdata[0]}"


def numbers(values: pl.Series) -> np.ndarray:
    """Return values in float32: it halves the page, and a pixel shows fewer digits still."""
    return values.to_numpy().astype(np.float32)


def _drawn(
    traces: list[go.Scatter], rows: pl.DataFrame, axes: Axes, words: tuple[str, str, str], target: Target
) -> Figure:
    """Specify the figure: equal axes, and the line on which estimates would be exact."""
    values = rows.select("exact", "estimate").to_numpy()
    low, high = (min(values.min(initial=0.0), 0.0), max(values.max(initial=0.0), 0.0))
    margin = 0.06 * ((high - low) or 1.0)
    ends = [low - margin, high + margin]
    line = go.Scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "width": 1, "dash": "dot"}, hoverinfo="skip")
    axis = {"range": ends, "gridcolor": GRID, "zerolinecolor": GREY, "zerolinewidth": 1, "ticks": "", "nticks": 7}
    layout = layout_of(
        _HEIGHT,
        margin={"l": 60, "r": 6, "t": 6, "b": 44},
        xaxis={**axis, "title": {"text": axes.exact, "standoff": 8}, "constrain": "domain", "constraintoward": "left"},
        yaxis={
            **axis,
            "title": {"text": axes.estimate, "standoff": 4},
            "scaleanchor": "x",
            "constrain": "domain",
            "constraintoward": "top",
        },
    )
    return plot(go.Figure([line, *traces], layout), words, target)
