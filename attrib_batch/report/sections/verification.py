"""The section 'Can these scores be trusted?': estimates beside exact scores of a verified sample of pairs.

What the sample makes of the means over all pairs is in `attrib_batch.report.sections.calibration`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.analysis import has_agreement, mean_effects, read_agreement, read_verified, verified_cells
from attrib_batch.analysis.places import END, is_at
from attrib_batch.analysis.verification.disagreement import NEGLIGIBLE
from attrib_batch.report.drawing.maps import Detail, Figure, Target
from attrib_batch.report.drawing.scatter import Axes, draw_means, draw_scores
from attrib_batch.report.sections.calibration import Calibration, calibrate_component
from attrib_batch.report.sections.disagreements import Beside, Disagreement, disagreements_of, flags_of
from attrib_batch.report.sections.verdict import Agreement, Value, Verdict, judge
from attrib_batch.tables import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from attrib_batch.analysis import Verified
    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Manifest

MOST_POINTS = 3000
_MOST_DISAGREEMENTS = 10


@dataclass(frozen=True)
class VerifiedCell:
    """What a page needs of one verified cell, at most ``MOST_POINTS`` scores of each component."""

    cell: Cell
    n_pairs: int
    n_units: int
    at: str
    has_role: bool
    """Whether ``at`` is the role `END`."""
    magnitudes: bool
    n_scores: dict[str, int]
    """How many scores of each component there are at ``at``."""
    points: dict[str, pl.DataFrame]
    """Those of them that are drawn, the strongest half first."""
    scopes: dict[str, str]
    """What figures are of, ``end`` and ``all``, as phrases; the latter only where all positions were measured."""
    effects: dict[str, pl.DataFrame]
    """Mean effects of each component, see `attrib_batch.analysis.mean_effects`."""
    agreement: dict[str, Agreement]


@dataclass(frozen=True)
class VerifiedComponent:
    """The verification of one component."""

    name: str
    kind: str
    """What its elements are called: head or layer."""
    verdict: Verdict
    agreement: Agreement
    figures: list[Figure]
    disagreements: list[Disagreement]
    n_elements: int
    calibration: Calibration
    flags: str | None
    """How many of the heads that are surely off the second order flagged, as a sentence; None where there is none."""

    @property
    def has_refined(self) -> bool:
        """Whether the run has their means by ``refined``."""
        return any(row.refined is not None for row in self.disagreements)

    @property
    def has_flags(self) -> bool:
        """Whether the run has their second orders."""
        return any(row.unreliability is not None for row in self.disagreements)


@dataclass(frozen=True)
class VerificationSection:
    """The verification of one cell."""

    anchor: str
    data: VerifiedCell
    components: list[VerifiedComponent]

    @property
    def size(self) -> int:
        """Characters of figures."""
        return sum(figure.size for component in self.components for figure in component.figures)

    def without_figures(self) -> VerificationSection:
        """Return the words and tables alone."""
        return replace(self, components=[replace(component, figures=[]) for component in self.components])


@dataclass(frozen=True)
class ComparedMethod:
    """One row of the table that compares methods."""

    cell: Cell
    component: str
    anchor: str
    n_pairs: int
    agreement: Agreement


def read_verification(out: str | Path | Store, manifest: Manifest) -> dict[Cell, VerifiedCell]:
    """Read what a page needs of every verified cell of a run; nothing where nothing has been verified.

    Raises:
        OutputError: exact scores and estimates do not match.
    """
    if not has_agreement(out):
        return {}
    table = read_agreement(out)
    found = {}
    for cell in verified_cells(out):
        rows = table.filter(model=cell.model, dataset=cell.dataset, method=cell.method)
        if len(rows):
            found[cell] = _summarized(read_verified(out, cell, manifest), rows)
    return found


def _summarized(verified: Verified, table: pl.DataFrame) -> VerifiedCell:
    agreement: dict[str, Agreement] = {}
    for row in table.iter_rows(named=True):
        value = Value(row["value"], row["low"], row["high"])
        agreement.setdefault(row["component"], {})[row["statistic"]] = value
    effects, at_end = mean_effects(verified), verified.rows.filter("at_end")
    names = [name for name in map(str, verified.components) if name in agreement]
    of = {name: at_end.filter(pl.col("component") == name) for name in names}
    return VerifiedCell(
        cell=verified.cell,
        n_pairs=verified.n_pairs,
        n_units=verified.n_units,
        at=verified.at,
        has_role=verified.has_role,
        magnitudes=verified.magnitudes,
        n_scores={name: len(rows) for name, rows in of.items()},
        scopes={"end": f"at {verified.at}"} | ({"all": "all positions"} if verified.everywhere else {}),
        points={name: thinned(rows, MOST_POINTS) for name, rows in of.items()},
        effects={name: effects.filter(pl.col("component") == name) for name in names},
        agreement=agreement,
    )


def thinned(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    """Keep at most so many rows, always the same ones: the strongest half, and an even choice of the others."""
    if len(rows) <= most:
        return rows
    strength = pl.max_horizontal(pl.col("exact").abs(), pl.col("estimate").abs())
    ordered = rows.sort(strength, descending=True, maintain_order=True)
    strongest, others = ordered.head(most - most // 2), ordered.slice(most - most // 2)
    step = -(-len(others) // (most // 2))
    return pl.concat([strongest, others.gather_every(step)])


def build_verification(
    index: int,
    data: VerifiedCell,
    heads: pl.DataFrame,
    *,
    method: dict[str, Any],
    unit: str,
    detail: Detail,
    beside: Beside | None = None,
) -> VerificationSection:
    """Draw and judge one verified cell.

    Args:
        index: of the cell.
        data: from `read_verification`.
        heads: the cell's rows of the ``heads`` summary.
        method: the job's method.
        unit: of the metric.
        detail: below ``FULL`` fewer points are drawn, at ``CORE`` only means.
        beside: what other methods of the run say at the same place.
    """
    axes, anchor = Axes(unit, data.magnitudes), f"cell-{index}"
    there, others = heads.filter(place_of(data)), beside or Beside()
    components = []
    for name, effects in data.effects.items():
        kind = _kind(effects)
        size, largest = pl.col("difference").abs(), pl.col("exact").abs().max()
        off = effects.filter(size > 0, size >= NEGLIGIBLE * largest).head(_MOST_DISAGREEMENTS)
        means = draw_means(
            effects,
            off,
            axes,
            div_id=f"{anchor}-{name}-verified-means",
            title=f"Means over the pairs, at {data.at}",
            caption=f"One point per {kind}, {len(effects):,} in all; dotted: estimate = exact."
            + (" Red: those of the table." if len(off) else ""),
            target=Target(index, name),
        )
        calibration = calibrate_component(
            there.filter(pl.col("component") == name),
            effects,
            axes,
            refined=others.of_component(name).select("layer", "head", "refined"),
            n_units=data.n_units,
            div_id=f"{anchor}-{name}-calibrated",
            at=data.at,
            target=Target(index, name),
        )
        drawn = [means] if calibration.figure is None else [means, calibration.figure]
        figures = [means] if detail is Detail.CORE else [_scores(index, name, data, axes, detail), *drawn]
        disagreements = disagreements_of(effects, off, calibration, others.of_component(name))
        components.append(
            VerifiedComponent(
                name=name,
                kind=kind,
                verdict=judge(data.agreement[name], method, data.at),
                agreement=data.agreement[name],
                figures=figures,
                disagreements=disagreements,
                n_elements=len(effects),
                calibration=calibration,
                flags=flags_of(disagreements, kind),
            )
        )
    return VerificationSection(f"{anchor}-verification", data, components)


def place_of(data: VerifiedCell) -> pl.Expr:
    """Return which rows of the ``heads`` summary are at the place where a cell was verified."""
    return is_at(END if data.has_role else Scope.LAST)


def compared_methods(sections: Iterable[VerificationSection]) -> list[ComparedMethod]:
    """List the verified components of every (model, dataset) of which several methods were verified."""
    found = [
        ComparedMethod(section.data.cell, component.name, section.anchor, section.data.n_pairs, component.agreement)
        for section in sections
        for component in section.components
    ]
    several = Counter((row.cell.model, row.cell.dataset, row.component) for row in found)
    kept = [row for row in found if several[row.cell.model, row.cell.dataset, row.component] > 1]
    return sorted(kept, key=lambda row: list(several).index((row.cell.model, row.cell.dataset, row.component)))


def _scores(index: int, name: str, data: VerifiedCell, axes: Axes, detail: Detail) -> Figure:
    points = thinned(data.points[name], MOST_POINTS if detail is Detail.FULL else MOST_POINTS // 4)
    kind, total = _kind(points), data.n_scores[name]
    caption = f"One point per pair and {kind}, {len(points):,}"
    if len(points) < total:
        caption += f" of {total:,}: the strongest, and an even choice of the others."
    else:
        caption += " in all."
    return draw_scores(
        points,
        axes,
        div_id=f"cell-{index}-{name}-verified-scores",
        title=f"Single scores, at {data.at}",
        caption=caption,
        target=Target(index, name),
    )


def _kind(rows: pl.DataFrame) -> str:
    return "layer" if rows.get_column("head").null_count() else "head"
