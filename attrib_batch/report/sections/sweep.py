"""Comparisons across a sweep: maps of all cells on one scale, differences, and the correlation of ranks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from attrib_batch import analysis
from attrib_batch.analysis.comparison.correlations import rank_correlation
from attrib_batch.report.drawing.maps import Axis, Detail, Figure, MapAxes, Target, draw_map, largest, picked
from attrib_batch.report.sections.ranking import at_best
from attrib_batch.report.sections.stability import draw_cells
from attrib_batch.report.sections.where import count_pairs
from attrib_batch.spec import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.analysis import Summary
    from attrib_batch.report.drawing.figures import Quantity
    from attrib_batch.storage.store import Store

MOST_COMPARED_PAIRS = 2_000
"""Of a cell; more are compared by their means alone, as pairs are read for it."""
_ROUNDING = 1e-5
"""Differences up to this share of the largest mean are none: scores are stored in float32."""
MOST_DIFFERENCES = 24
"""Difference maps of one component; a larger sweep has the others in its summary."""


class Compare(Protocol):
    """Gives the difference of the means of two cells, head by head."""

    def __call__(self, a: Cell, b: Cell, *, normalized: bool) -> pl.DataFrame | None:
        """Return ``component, scope, role, layer, head, difference, low, high, n_pairs_a, n_pairs_b``, or None."""


@dataclass(frozen=True)
class SweptCell:
    """A cell of a sweep that has scores of a component: the heads that are ranked."""

    index: int
    cell: Cell
    label: str
    """What tells it from the other cells."""
    heads: pl.DataFrame
    """Rows of the summary at one place, with intervals."""
    at: str
    quantity: Quantity
    magnitudes: bool
    gap: float | None
    sign: int = 1
    """-1 where what brings about the clean behaviour is negative, as under noising."""


@dataclass(frozen=True)
class RankCorrelations:
    """Spearman's correlation over heads of every two cells."""

    labels: list[str]
    rows: list[list[float | None]]
    """None for models of different shape."""
    partial: bool
    """Whether some are of different shape."""


@dataclass(frozen=True)
class SweepComponent:
    """One component across the sweep."""

    name: str
    maps: list[Figure]
    differences: list[Figure]
    correlations: RankCorrelations
    stability: Figure | None
    """How many pairs are enough, of all cells."""
    paired: bool
    """Whether the differences have intervals of their own."""
    left_out: int
    """Difference maps that are not drawn."""
    same: list[str]
    """Pairs of cells without a difference, in words."""
    mixed_places: bool
    """Whether cells are ranked at different places."""
    turned: bool
    """Whether there are cells of both directions."""

    @property
    def size(self) -> int:
        """Characters of figures."""
        return sum(figure.size for figure in self.figures)

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        return [*self.maps, *self.differences, *([self.stability] if self.stability else [])]


@dataclass(frozen=True)
class Sweep:
    """All comparisons."""

    components: list[SweepComponent] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Characters of figures."""
        return sum(component.size for component in self.components)


def comparison_of(store: Store, summary: Summary) -> Compare:
    """Return what compares two cells of a run head by head.

    It gives None for cells that cannot be compared, and for those of so many pairs that a page would take long.
    """
    columns = summary.baselines.select("model", "dataset", "method", "scored").iter_rows()
    scored = {Cell(model, dataset, method): count for model, dataset, method, count in columns}

    def compared(a: Cell, b: Cell, *, normalized: bool) -> pl.DataFrame | None:
        if max(scored[a], scored[b]) > MOST_COMPARED_PAIRS:
            return None
        try:
            return analysis.compare(store, a, b, normalized=normalized)
        except ValueError:
            return None

    return compared


def labels_of(cells: Sequence[Cell]) -> list[str]:
    """Return what tells each cell from the others: only the names that differ."""
    keys = [key for key in ("model", "dataset", "method") if len({getattr(cell, key) for cell in cells}) > 1]
    return [" · ".join(getattr(cell, key) for key in keys or ("method",)) for cell in cells]


def build_component(
    name: str,
    cells: Sequence[SweptCell],
    detail: Detail,
    compare: Compare | None = None,
    stability: pl.DataFrame | None = None,
) -> SweepComponent:
    """Compare the cells that have scores of a component with heads.

    Args:
        name: the component.
        cells: at least two.
        detail: at ``CORE`` there are no difference maps, below ``FULL`` no intervals.
        compare: gives the differences of two cells with intervals; without it, differences of means are drawn.
        stability: the summary of that name.
    """
    limits: dict[str, float] = {}
    for cell in cells:
        limits[cell.quantity.label] = max(
            limits.get(cell.quantity.label, 0.0), largest(picked(cell.heads, cell.quantity))
        )
    maps = [_map(name, cell, limits[cell.quantity.label], detail) for cell in cells]
    pairs = [] if detail is Detail.CORE else list(_neighbours(cells))
    considered = pairs[:MOST_DIFFERENCES]
    compared = [(pair, *_difference(*pair, compare)) for pair in considered]
    noise = _ROUNDING * max(limits.values(), default=0.0)
    found = [item for item in compared if largest(item[1]) > noise]
    limit = max((largest(rows) for _, rows, _ in found), default=0.0)
    return SweepComponent(
        name=name,
        maps=maps,
        differences=[_difference_map(name, pair, rows, limit, detail) for pair, rows, _ in found],
        correlations=_correlations(cells),
        stability=None if stability is None else _stability(name, cells, stability),
        paired=bool(found) and all(certain for *_, certain in found),
        left_out=len(pairs) - len(considered),
        same=[f"{a.label} and {b.label}" for (a, b), rows, _ in compared if largest(rows) <= noise],
        mixed_places=len({cell.at for cell in cells}) > 1,
        turned=len({cell.sign for cell in cells}) > 1,
    )


def _stability(name: str, cells: Sequence[SweptCell], table: pl.DataFrame) -> Figure | None:
    ranked = [(cell.label, cell.cell, str(cell.heads.item(0, "scope"))) for cell in cells]
    return draw_cells(table, ranked, name, f"sweep-{name}-stability")


def swept(index: int, cell: Cell, label: str, heads: pl.DataFrame, **more: Any) -> SweptCell:
    """Return the cell with the rows that are compared."""
    rows, at = at_best(heads)
    return SweptCell(index, cell, label, rows, at, **more)


def _map(name: str, cell: SweptCell, limit: float, detail: Detail) -> Figure:
    rows = _placed(picked(cell.heads, cell.quantity))
    return draw_map(
        rows,
        _axes(rows),
        div_id=f"sweep-{name}-{cell.index}",
        title=cell.label,
        caption=f"at {cell.at}, {count_pairs(cell.heads)}",
        label=cell.quantity.label,
        unit=cell.quantity.unit,
        factor=cell.gap,
        detail=detail,
        limit=limit,
        target=Target(cell.index, name),
        compact=True,
    )


def _neighbours(cells: Sequence[SweptCell]) -> list[tuple[SweptCell, SweptCell]]:
    """List the pairs of cells of one model that differ in one thing: each dataset, or method, minus the first."""
    found = []
    for key, fixed in (("method", "dataset"), ("dataset", "method")):
        groups: dict[tuple[str, str], list[SweptCell]] = {}
        for cell in cells:
            groups.setdefault((cell.cell.model, getattr(cell.cell, fixed)), []).append(cell)
        for group in groups.values():
            first = group[0]
            found += [
                (other, first)
                for other in group[1:]
                if getattr(other.cell, key) != getattr(first.cell, key)
                and other.quantity.label == first.quantity.label
                and other.magnitudes == first.magnitudes
                and other.at == first.at
                and _shape(other.heads) == _shape(first.heads)
            ]
    return found


def _difference(a: SweptCell, b: SweptCell, compare: Compare | None) -> tuple[pl.DataFrame, bool]:
    """Return the difference a - b of every head, and whether it has an interval."""
    frame = compare(a.cell, b.cell, normalized=a.quantity.normalized) if compare is not None else None
    if frame is not None and len(rows := _compared(frame, a)):
        return rows, True
    keys = ["layer", "head"]
    sides = [
        picked(cell.heads, cell.quantity).select(
            *keys, pl.col("value") * (cell.sign if a.sign != b.sign else 1), "n_pairs", "n_groups"
        )
        for cell in (a, b)
    ]
    nothing = pl.lit(None, pl.Float64)
    return (
        sides[0]
        .join(sides[1], on=keys, suffix="_b")
        .select(
            *keys,
            value=pl.col("value") - pl.col("value_b"),
            low=nothing,
            high=nothing,
            n_pairs=pl.min_horizontal("n_pairs", "n_pairs_b"),
            n_groups=pl.min_horizontal("n_groups", "n_groups_b"),
        ),
        False,
    )


def _compared(frame: pl.DataFrame, cell: SweptCell) -> pl.DataFrame:
    """Select from a comparison the rows of the place that is ranked."""
    first = cell.heads.row(0, named=True)
    n_pairs = pl.min_horizontal("n_pairs_a", "n_pairs_b")
    return frame.filter(*(pl.col(key).eq_missing(pl.lit(first[key])) for key in ("component", "scope", "role"))).select(
        "layer", "head", "low", "high", value=pl.col("difference"), n_pairs=n_pairs, n_groups=n_pairs
    )


def _difference_map(
    name: str, pair: tuple[SweptCell, SweptCell], rows: pl.DataFrame, limit: float, detail: Detail
) -> Figure:
    a, b = pair
    placed = _placed(rows)
    label_a, label_b = labels_of([a.cell, b.cell])
    fixed = [
        getattr(a.cell, key) for key in ("model", "dataset", "method") if getattr(a.cell, key) == getattr(b.cell, key)
    ]
    return draw_map(
        placed,
        _axes(placed),
        div_id=f"difference-{name}-{a.index}-{b.index}",
        title=f"{label_a} \N{MINUS SIGN} {label_b}",
        caption=" · ".join(fixed),
        label="difference of means, normalised" if a.quantity.normalized else f"difference of means, {a.quantity.unit}",
        # Two cells have two gaps: a difference of shares is not one in metric units.
        unit=a.quantity.unit,
        detail=detail,
        limit=limit,
        target=Target(a.index, name),
        compact=True,
    )


def _correlations(cells: Sequence[SweptCell]) -> RankCorrelations:
    """Correlate the ranks of the means of every two cells of models of one shape."""
    size = len(cells)
    found: list[list[float | None]] = [[1.0 if i == j else None for j in range(size)] for i in range(size)]
    partial = False
    for i, j in itertools.combinations(range(size), 2):
        a, b = cells[i], cells[j]
        if _shape(a.heads) != _shape(b.heads):
            partial = True
            continue
        joined = a.heads.select("layer", "head", "mean").join(b.heads, on=["layer", "head"])
        means = joined.select("mean", pl.col("mean_right") * a.sign * b.sign).to_numpy()
        found[i][j] = found[j][i] = rank_correlation(*means.T, magnitudes=a.magnitudes or b.magnitudes)
    return RankCorrelations([cell.label for cell in cells], found, partial)


def _shape(heads: pl.DataFrame) -> tuple[object, object]:
    return heads.get_column("layer").max(), heads.get_column("head").max()


def _placed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(y=pl.col("layer").cast(pl.Int64), x=pl.col("head").cast(pl.Int64))


def _axes(rows: pl.DataFrame) -> MapAxes:
    heads, layers = (int(rows.get_column(name).max() or 0) + 1 for name in ("x", "y"))  # type: ignore[arg-type]  # integers here
    return MapAxes(list(range(heads)), list(range(layers)), Axis.HEAD)
