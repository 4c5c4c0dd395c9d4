"""What a page says about each cell of the sweep: which maps, in which order, with which words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.report.figures import Detail, Figure, Panel, Quantity, draw
from attrib_batch.report.ranking import Ranking, rank_heads
from attrib_batch.report.verification import VerificationSection, VerifiedCell, build_verification
from attrib_batch.report.wording import describe_method, describe_scale, unit_of, warning_about
from attrib_batch.spec import Cell, Component
from attrib_batch.spec.positions import ALL
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.analysis import Summary
    from attrib_batch.tables import Manifest


@dataclass(frozen=True)
class ComponentSection:
    """The maps of one component in one cell."""

    name: str
    figures: list[Figure]
    """The tutorial's two maps where the component has heads."""
    roles: list[Figure] = field(default_factory=list)
    """One map per role, all on one colour scale."""
    whole: list[Figure] = field(default_factory=list)
    """The sum over all positions."""
    ranking: Ranking | None = None

    @property
    def size(self) -> int:
        """Characters of figures."""
        return sum(len(figure.html) for figure in (*self.figures, *self.roles, *self.whole))


@dataclass(frozen=True)
class CellSection:
    """One cell of the sweep."""

    anchor: str
    cell: Cell
    baseline: dict[str, Any]
    method: str
    """What the method computes, as a sentence."""
    scale: str
    """What normalised numbers mean, as a clause."""
    unit: str
    normalized: bool
    warning: str | None
    components: list[ComponentSection]
    verification: VerificationSection | None = None
    figures_left_out: bool = False

    @property
    def size(self) -> int:
        """Characters of figures."""
        verified = self.verification.size if self.verification else 0
        return verified + sum(component.size for component in self.components)

    def without_figures(self) -> CellSection:
        """Return the words and tables alone."""
        return replace(
            self,
            components=[replace(component, figures=[], roles=[], whole=[]) for component in self.components],
            verification=self.verification and self.verification.without_figures(),
            figures_left_out=True,
        )


def build_sections(
    manifest: Manifest, summary: Summary, detail: Detail, verification: Mapping[Cell, VerifiedCell] | None = None
) -> list[CellSection]:
    """Draw every cell of the plan, and the verification of those that have one."""
    verified = verification or {}
    return [
        _cell(f"cell-{index}", entry.cell, manifest, summary, detail, verified=verified)
        for index, entry in enumerate(manifest.plan)
    ]


def _cell(
    anchor: str,
    cell: Cell,
    manifest: Manifest,
    summary: Summary,
    detail: Detail,
    *,
    verified: Mapping[Cell, VerifiedCell],
) -> CellSection:
    method = manifest.method(cell.method)
    of_cell = (pl.col("model") == cell.model) & (pl.col("dataset") == cell.dataset) & (pl.col("method") == cell.method)
    baseline = summary.baselines.row(by_predicate=of_cell, named=True)
    quantity = Quantity(baseline["normalizable"], unit_of(str(method.get("metric", "logit_diff"))))
    heads = summary.heads.filter(of_cell)
    positions = summary.positions.filter(of_cell, scope=Scope.POSITION)
    own = verified.get(cell)
    present = set(heads.get_column("component"))
    everywhere = manifest.positions_of(cell.method) == ALL
    builder = _Builder(anchor, heads, positions, quantity, detail, everywhere=everywhere)
    return CellSection(
        anchor=anchor,
        cell=cell,
        baseline=baseline,
        method=describe_method(method),
        scale=describe_scale(method),
        unit=quantity.unit,
        normalized=quantity.normalized,
        warning=warning_about(baseline, method),
        components=[builder.component(name) for name in Component if name in present],
        verification=build_verification(anchor, own, method, quantity.unit, detail) if own else None,
    )


@dataclass(frozen=True)
class _Builder:
    """Draws the components of one cell."""

    anchor: str
    heads: pl.DataFrame
    positions: pl.DataFrame
    quantity: Quantity
    detail: Detail
    everywhere: bool
    """Whether there are scores at all positions; otherwise a sum over positions is one over those asked for."""

    def component(self, component: Component) -> ComponentSection:
        heads = self.heads.filter(pl.col("component") == component)
        positions = self.positions.filter(pl.col("component") == component)
        by_position = self._draw(self._position_panel(component, positions), f"{component}-position")
        if not component.has_heads:
            by_role = self._draw(_role_columns(heads, everywhere=self.everywhere), f"{component}-roles")
            return ComponentSection(component, [by_role, by_position])
        figures = [*self._at_last(component, heads.filter(pl.col("scope") == "last")), by_position]
        ranking = rank_heads(heads, self.quantity)
        if self.detail is Detail.CORE:
            return ComponentSection(component, figures, ranking=ranking)
        return ComponentSection(
            component,
            figures,
            roles=self._roles(component, heads.filter(pl.col("scope") == "role")),
            whole=self._everywhere(component, heads.filter(pl.col("scope") == "all")),
            ranking=ranking,
        )

    def _at_last(self, component: Component, rows: pl.DataFrame) -> list[Figure]:
        """Draw the heads at the last position, if it was asked for."""
        if rows.is_empty():
            return []
        caption = f"Mean over {_pairs(rows)} of each head's score at the last token."
        return [self._draw(Panel(rows, "head", "Heads, at the last position", caption), f"{component}-last")]

    def _everywhere(self, component: Component, rows: pl.DataFrame) -> list[Figure]:
        """Draw the sum over positions, where all were asked for."""
        if not self.everywhere:
            return []
        caption = f"Each head's score summed over positions; mean over {_pairs(rows)}."
        return [self._draw(Panel(rows, "head", "Heads, all positions", caption), f"{component}-all")]

    def _roles(self, component: Component, rows: pl.DataFrame) -> list[Figure]:
        panels = []
        for role in role_order(rows):
            own = rows.filter(pl.col("role") == role)
            panels.append(Panel(own, "head", role, _pairs(own), compact=True))
        limit = max((panel.limit(self.quantity) for panel in panels), default=0.0)
        return [self._draw(panel, f"{component}-role-{index}", limit=limit) for index, panel in enumerate(panels)]

    def _position_panel(self, component: Component, rows: pl.DataFrame) -> Panel:
        summed = "Scores summed over heads" if component.has_heads else "Scores"
        caption = f"{summed}; mean over {_pairs(rows)}. Positions count from 0."
        return Panel(rows, "position", "Layers, by token position", caption)

    def _draw(self, panel: Panel, name: str, limit: float | None = None) -> Figure:
        return draw(panel, self.quantity, div_id=f"{self.anchor}-{name}", detail=self.detail, limit=limit)


def _role_columns(rows: pl.DataFrame, *, everywhere: bool) -> Panel:
    """Lay out one map whose columns are the roles, the last position and the sum over all positions, if there are."""
    if not everywhere:
        rows = rows.filter(pl.col("scope") != "all")
    order = role_order(rows)
    # A role may bear any name, also this one.
    last = next(name for name in ("(last)", "((last))") if name not in order)
    whole = next(name for name in ("(all)", "((all))") if name not in order)
    place = {name: index for index, name in enumerate([*order, last, whole])}
    named = rows.with_columns(
        role=pl.when(pl.col("scope") == "last")
        .then(pl.lit(last))
        .when(pl.col("scope") == "all")
        .then(pl.lit(whole))
        .otherwise(pl.col("role"))
    )
    placed = named.sort(pl.col("role").replace_strict(place, return_dtype=pl.Int64), "layer")
    columns = [f"{last} is the last token"] if "last" in rows.get_column("scope") else []
    columns += [f"{whole} every token"] if everywhere else []
    beside = f"; {', '.join(columns)}" if columns else ""
    caption = f"Summed over a role's tokens{beside}. {_pairs(rows)}."
    return Panel(placed, "role", "Layers, by role", caption)


def role_order(rows: pl.DataFrame) -> list[str]:
    """Return the names of the roles, alphabetical, with ``end`` last as it is in the prompt."""
    names = rows.get_column("role").drop_nulls().unique().to_list()
    return sorted(names, key=lambda name: (name == "end", name))


def _pairs(rows: pl.DataFrame) -> str:
    """Say how many pairs the rows are over, such as ``1,000 pairs``."""
    counts = rows.get_column("n_pairs").unique().sort()
    return f"{counts[0]:,} to {counts[-1]:,} pairs" if len(counts) > 1 else f"{counts[0]:,} pairs"
