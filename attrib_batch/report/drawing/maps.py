"""The figures of a page: compact specifications, which the page's script draws when they come into view.

A map carries its numbers as float32 in base64: means, ends of intervals, and the number of pairs of each column. The
script draws it with plotly.js, which is in the page once.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from attrib_batch.report.tokens import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.report.drawing.figures import Quantity


class Detail(IntEnum):
    """How much a page shows of every cell; it shrinks as a sweep outgrows one page."""

    FULL = 0
    """Every map, intervals on hover."""
    BRIEF = 1
    """Every map, only means on hover."""
    CORE = 2
    """Of every component the map of heads and those by role and by position."""


class Axis(StrEnum):
    """What the columns or the rows of a map stand for."""

    HEAD = "head"
    LAYER = "layer"
    ROLE = "role"
    POSITION = "position"
    FROM_END = "from_end"
    STRATUM = "stratum"


@dataclass(frozen=True)
class Target:
    """Whose heads a figure shows, so that a click finds their examples."""

    cell: int
    component: str


@dataclass(frozen=True)
class Figure:
    """A figure and the words around it."""

    div_id: str
    title: str
    caption: str
    spec: dict[str, Any]
    """What the script draws; plain data."""
    limit: float | None = None
    """The colour bar runs from -limit to +limit; None for what has no colour bar."""
    label: str = ""
    """What the colour bar says."""

    @property
    def height(self) -> int:
        """Pixels that the page keeps free for it."""
        return int(self.spec["height"])

    @property
    def width(self) -> int | None:
        """Pixels beyond which its columns would only become broad; None where it may be as wide as there is room."""
        if self.spec["kind"] != "map" or self.spec["xaxis"] == Axis.HEAD:
            return None
        return 130 + (84 if self.spec["xaxis"] in (Axis.ROLE, Axis.STRATUM) else 48) * len(self.spec["x"])

    @property
    def size(self) -> int:
        """Characters that it adds to the page."""
        return len(json.dumps(self.spec))


@dataclass(frozen=True)
class MapAxes:
    """The labels of a map's columns and rows."""

    columns: Sequence[str | int]
    rows: Sequence[str | int]
    column_axis: Axis
    row_axis: Axis = Axis.LAYER
    tokens: Sequence[str] | None = field(default=None)
    """The token of each column, where all prompts have the same."""


def picked(rows: pl.DataFrame, quantity: Quantity) -> pl.DataFrame:
    """Select the drawn numbers of summary rows as ``value, low, high, n_pairs, n_groups``; other columns stay."""
    suffix = "_normalized" if quantity.normalized else ""
    return rows.with_columns(value=pl.col(f"mean{suffix}"), low=pl.col(f"low{suffix}"), high=pl.col(f"high{suffix}"))


def largest(rows: pl.DataFrame) -> float:
    """Return the largest absolute value of picked rows, 0 where there is none."""
    found = rows.get_column("value").abs().max()
    return float(found) if isinstance(found, int | float) and np.isfinite(found) else 0.0


def draw_map(
    rows: pl.DataFrame,
    axes: MapAxes,
    *,
    div_id: str,
    title: str,
    caption: str,
    label: str,
    unit: str,
    factor: float | None = None,
    detail: Detail = Detail.FULL,
    limit: float | None = None,
    target: Target | None = None,
    compact: bool = False,
    tall: bool = False,
) -> Figure:
    """Specify a map.

    Args:
        rows: one per drawn cell: ``x, y`` (indices of column and row), ``value, low, high, n_pairs, n_groups``.
        axes: the labels.
        div_id: the figure's id, unique in the page; fixed, so that writing a page twice gives the same text.
        title: of the figure.
        caption: of the figure.
        label: what the colour bar says.
        unit: of the values, or of what they are multiplied with ``factor`` to.
        factor: what turns a value into one of ``unit``; None where it is one.
        detail: below ``FULL`` there are no intervals.
        limit: the end of the colour bar; the map's own largest value where absent.
        target: whose heads it shows.
        compact: drawn small, beside others.
        tall: drawn large, beside a table.
    """
    limit = largest(rows) if limit is None else limit
    shape = (len(axes.rows), len(axes.columns))
    at = rows.get_column("y").to_numpy(), rows.get_column("x").to_numpy()
    counts = rows.group_by("x").agg(pl.col("n_pairs").max(), pl.col("n_groups").max())
    spec: dict[str, Any] = {
        "kind": "map",
        "x": [_label(label) for label in axes.columns],
        "y": [_label(label) for label in axes.rows],
        "xaxis": str(axes.column_axis),
        "yaxis": str(axes.row_axis),
        "value": encoded(rows.get_column("value"), at, shape),
        "n": _by_column(counts, "n_pairs", shape[1]),
        "units": _by_column(counts, "n_groups", shape[1]),
        "limit": limit or 1.0,
        "label": label,
        "unit": unit,
        "height": _height(shape[0], row=15 if compact else 34 if tall else 21, most=480 if compact else 660),
    }
    if detail is Detail.FULL and rows.get_column("low").null_count() < len(rows):
        spec |= {name: encoded(rows.get_column(name), at, shape) for name in ("low", "high")}
    if factor is not None:
        spec["factor"] = factor
    if axes.tokens is not None:
        spec["tokens"] = list(axes.tokens)
    if target is not None:
        spec["target"] = [target.cell, target.component]
    if compact:
        spec["compact"] = True
    return Figure(div_id, shown(title), caption, spec, limit, label)


def encoded(values: pl.Series, at: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> str:
    """Write values as float32 in base64, row by row; NaN where there is none.

    Seven digits are more than anyone hovers for.
    """
    grid = np.full(shape, np.nan, dtype="<f4")
    grid[at] = values.cast(pl.Float32).to_numpy()
    return base64.b64encode(grid.tobytes()).decode("ascii")


def _label(label: str | int) -> str | int:
    """Return a label with nothing in it that could move other text: names of roles and templates are the user's."""
    return shown(label) if isinstance(label, str) else label


def _by_column(counts: pl.DataFrame, name: str, columns: int) -> int | list[int]:
    """List a count for each column, or state it once where all are equal."""
    found = dict(counts.select("x", name).iter_rows())
    values = [int(found.get(index) or 0) for index in range(columns)]
    return values[0] if len(set(values)) == 1 else values


def _height(rows: int, *, row: int, most: int) -> int:
    """Return the pixels of a map with so many rows, each of so many pixels as far as there is room."""
    return min(max(row * rows + 56, 170 if most < 500 else 210), max(most, 7 * rows + 56))
