"""What a page says about each cell of the sweep: which figures, in which order, with which words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.report.drawing.figures import Quantity
from attrib_batch.report.sections.disagreements import Beside
from attrib_batch.report.sections.examples import CellExamples, examples_of
from attrib_batch.report.sections.intervals import with_intervals
from attrib_batch.report.sections.ranking import Ranking, rank_heads
from attrib_batch.report.sections.stability import Stability, build_stability
from attrib_batch.report.sections.strata import Strata, draw_strata
from attrib_batch.report.sections.sweep import Compare, Sweep, build_component, labels_of, swept
from attrib_batch.report.sections.verification import (
    VerificationSection,
    VerifiedCell,
    build_verification,
    place_of,
)
from attrib_batch.report.sections.where import CellView, Where, draw_answer, draw_where, limit_of_heads
from attrib_batch.report.tokens import token_axis
from attrib_batch.report.wording import (
    describe_method,
    describe_scale,
    is_measured,
    unit_of,
    warning_about,
)
from attrib_batch.spec import Cell, Component
from attrib_batch.spec.method import CORRUPTED, reference_of
from attrib_batch.spec.positions import ALL
from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.tables import StratumKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.analysis import Summary
    from attrib_batch.report.drawing.maps import Detail, Figure
    from attrib_batch.tables import Manifest


@dataclass(frozen=True)
class Material:
    """All that a page is made of."""

    manifest: Manifest
    summary: Summary
    verification: Mapping[Cell, VerifiedCell] = field(default_factory=dict)
    examples: pl.DataFrame | None = None
    """Rows of examples, see `attrib_batch.report.sections.examples`; None where this release has none."""
    stability: pl.DataFrame | None = None
    """The ``stability`` summary; None where there is none."""
    compare: Compare | None = None
    """Gives the differences of two cells, head by head; None where this release cannot."""


@dataclass(frozen=True)
class ComponentSection:
    """One component in one cell."""

    name: str
    ranking: Ranking
    answer: list[Figure]
    where: Where
    stability: Stability | None = None
    strata: list[Strata] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        more = [self.stability.figure] if self.stability and self.stability.figure else []
        return [*self.answer, *self.where.figures, *more, *(found.figure for found in self.strata)]

    def without_figures(self) -> ComponentSection:
        """Return the words and tables alone."""
        where = Where(zero_roles=self.where.zero_roles)
        return replace(self, answer=[], where=where, stability=None, strata=[])


@dataclass(frozen=True)
class CellSection:
    """One cell of the sweep."""

    index: int
    cell: Cell
    label: str
    """What tells it from the other cells."""
    baseline: dict[str, Any]
    method: str
    """What the method computes, as a sentence."""
    kind: str
    """The method's kind, metric and direction."""
    measured: bool
    """Whether its scores are the effects themselves, not estimates."""
    scale: str
    """What normalised numbers mean, as a clause."""
    quantity: Quantity
    warning: str | None
    components: list[ComponentSection]
    examples: CellExamples
    verification: VerificationSection | None = None
    figures_left_out: bool = False

    @property
    def anchor(self) -> str:
        """The id of its part of the page."""
        return f"cell-{self.index}"

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return self.quantity.unit

    @property
    def normalized(self) -> bool:
        """Whether values are shares of the gap."""
        return self.quantity.normalized

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        verified = self.verification.components if self.verification else []
        found = [figure for component in self.components for figure in component.figures]
        return found + [figure for component in verified for figure in component.figures]

    @property
    def size(self) -> int:
        """Characters of figures."""
        return sum(figure.size for figure in self.figures)

    def without_figures(self) -> CellSection:
        """Return the words and tables alone."""
        return replace(
            self,
            components=[component.without_figures() for component in self.components],
            verification=self.verification and self.verification.without_figures(),
            figures_left_out=True,
        )


def build_sections(material: Material, detail: Detail) -> list[CellSection]:
    """Draw every cell of the plan."""
    cells = [entry.cell for entry in material.manifest.plan]
    return [
        _cell(index, cell, label, material, detail)
        for index, (cell, label) in enumerate(zip(cells, labels_of(cells), strict=True))
    ]


def build_sweep(material: Material, detail: Detail) -> Sweep:
    """Compare the cells of the sweep; nothing where fewer than two have scores."""
    manifest, summary = material.manifest, material.summary
    cells = [entry.cell for entry in manifest.plan]
    found = []
    for component in Component:
        if not component.has_heads:
            continue
        there = []
        for index, (cell, label) in enumerate(zip(cells, labels_of(cells), strict=True)):
            heads = with_intervals(_of(summary.heads, cell).filter(pl.col("component") == component))
            if heads.is_empty():
                continue
            baseline, method = _baseline(summary, cell), manifest.method(cell.method)
            quantity = _quantity(baseline, method)
            magnitudes = has_magnitudes(method)
            there.append(
                swept(
                    index,
                    cell,
                    label,
                    heads,
                    quantity=quantity,
                    magnitudes=magnitudes,
                    gap=_gap(baseline, quantity),
                    sign=-1 if method.get("direction") == "noise" and not magnitudes else 1,
                )
            )
        if len(there) > 1:
            found.append(build_component(component, there, detail, material.compare, material.stability))
    return Sweep(found)


def _kind(method: Mapping[str, Any]) -> list[str]:
    """Return what a method is in a few words."""
    words = [str(method[key]) for key in ("kind", "metric", "direction") if method.get(key)]
    return words if reference_of(method) == CORRUPTED else [*words[:-1], f"{reference_of(method)} ablation"]


def _cell(index: int, cell: Cell, label: str, material: Material, detail: Detail) -> CellSection:
    manifest, summary = material.manifest, material.summary
    method, baseline = manifest.method(cell.method), _baseline(summary, cell)
    quantity = _quantity(baseline, method)
    examples = examples_of(material.examples, cell)
    builder = _Builder(index, cell, material, quantity, detail, examples)
    heads = _of(summary.heads, cell)
    present = set(heads.get_column("component"))
    own = material.verification.get(cell)
    verified = None
    if own:
        beside = Beside.of(manifest, summary.heads.filter(place_of(own)), cell)
        verified = build_verification(
            index, own, heads, method=method, unit=quantity.unit, detail=detail, beside=beside
        )
    return CellSection(
        index=index,
        cell=cell,
        label=label,
        baseline=baseline,
        method=describe_method(method),
        kind=" · ".join(_kind(method)),
        measured=is_measured(method),
        scale=describe_scale(method),
        quantity=quantity,
        warning=warning_about(baseline, method),
        components=[builder.component(name) for name in Component if name in present],
        examples=examples,
        verification=verified,
    )


@dataclass(frozen=True)
class _Builder:
    """Draws the components of one cell."""

    index: int
    cell: Cell
    material: Material
    quantity: Quantity
    detail: Detail
    examples: CellExamples

    def component(self, component: Component) -> ComponentSection:
        manifest, summary = self.material.manifest, self.material.summary
        of_component = pl.col("component") == component
        heads = _of(summary.heads, self.cell).filter(of_component)
        positions = with_intervals(_of(summary.positions, self.cell).filter(of_component))
        strata = _of(summary.strata, self.cell)
        baseline = _baseline(summary, self.cell)
        lengths = (baseline["n_tokens_min"], baseline["n_tokens_max"])
        view = CellView(
            index=self.index,
            component=component,
            quantity=self.quantity,
            gap=_gap(baseline, self.quantity),
            detail=self.detail,
            has_heads=component.has_heads,
            everywhere=manifest.positions_of(self.cell.method) == ALL,
        )
        drawn = with_intervals(heads)
        ranking = rank_heads(drawn, self.quantity)
        one_wording = strata.filter(pl.col("kind") == StratumKind.TEMPLATE).get_column("stratum").n_unique() == 1
        tokens = token_axis(self.examples.prompts(), lengths[0]) if one_wording and lengths[0] == lengths[1] else None
        return ComponentSection(
            component,
            ranking,
            answer=draw_answer(view, drawn, limit_of_heads(view, drawn)),
            where=draw_where(view, drawn, positions, lengths, tokens),
            stability=build_stability(
                self.material.stability, self.cell, component, ranking, f"cell-{self.index}-{component}-stability"
            ),
            strata=draw_strata(view, strata.filter(of_component), ranking),
        )


def _of(frame: pl.DataFrame, cell: Cell) -> pl.DataFrame:
    return frame.filter(model=cell.model, dataset=cell.dataset, method=cell.method)


def _baseline(summary: Summary, cell: Cell) -> dict[str, Any]:
    return _of(summary.baselines, cell).row(0, named=True)


def _quantity(baseline: Mapping[str, Any], method: Mapping[str, Any]) -> Quantity:
    return Quantity(bool(baseline["normalizable"]), unit_of(str(method.get("metric", "logit_diff"))))


def _gap(baseline: Mapping[str, Any], quantity: Quantity) -> float | None:
    return float(baseline["mean_difference"]) if quantity.normalized else None
