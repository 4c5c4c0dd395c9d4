"""The heads whose mean estimates mislead, with what other methods of the run say of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.reliability import FIRST, FLAGGED, SECOND, same_question
from attrib_batch.report.drawing.scatter import head_name
from attrib_batch.report.sections.verdict import Value

if TYPE_CHECKING:
    from attrib_batch.report.sections.calibration import Calibration
    from attrib_batch.spec import Cell
    from attrib_batch.tables import Manifest

REFINED = "refined"
"""The kind of method that measures what matters of the first order."""
_HEAD = ["component", "layer", "head"]


def _nothing() -> pl.DataFrame:
    return pl.DataFrame(
        schema={
            "component": pl.String,
            "layer": pl.Int16,
            "head": pl.Int16,
            "refined": pl.Float64,
            "unreliability": pl.Float64,
        }
    )


@dataclass(frozen=True)
class Beside:
    """Mean scores of the same heads by methods that start from the first order; nothing where a run has none."""

    rows: pl.DataFrame = field(default_factory=_nothing)
    """``component, layer, head, refined, unreliability``.

    The latter is what the second order adds to a mean, over that mean.
    """

    @classmethod
    def of(cls, manifest: Manifest, heads: pl.DataFrame, cell: Cell) -> Beside:
        """Read them from the ``heads`` summary at one place.

        Args:
            manifest: of the run.
            heads: the summary of all cells, at one place.
            cell: the cell that was verified.
        """
        if manifest.method(cell.method).get("kind") != FIRST:
            return cls()
        rows = _means(heads, cell, "first")
        for kind, name in ((REFINED, "refined"), (SECOND, "second")):
            if others := same_question(manifest, cell, kind):
                rows = rows.join(_means(heads, others[0], name), on=_HEAD, how="left", nulls_equal=True)
            else:
                rows = rows.with_columns(pl.lit(None, pl.Float64).alias(name))
        added = (pl.col("second") - pl.col("first")).abs()
        changes = added.is_not_null() & ((added != 0) | (pl.col("first") != 0))
        return cls(rows.select(*_HEAD, "refined", unreliability=pl.when(changes).then(added / pl.col("first").abs())))

    def of_component(self, component: str) -> pl.DataFrame:
        """Return ``layer, head, refined, unreliability`` of the heads of a component."""
        return self.rows.filter(pl.col("component") == component).drop("component")


def _means(heads: pl.DataFrame, cell: Cell, name: str) -> pl.DataFrame:
    mine = heads.filter(model=cell.model, dataset=cell.dataset, method=cell.method)
    return mine.select(*_HEAD, pl.col("mean").cast(pl.Float64).alias(name))


@dataclass(frozen=True)
class Disagreement:
    """A head for which the estimate misleads; metric units."""

    name: str
    layer: int
    head: int | None
    estimate: float
    exact: float
    difference: float
    half_width: float | None
    share: float | None
    """The difference as a share of the largest absolute mean exact effect."""
    calibrated: Value
    """The mean exact effect over all pairs, see `attrib_batch.report.sections.calibration`."""
    refined: float | None
    """The mean over all pairs by the method ``refined``, where the run has it."""
    unreliability: float | None
    """What the second order adds to the mean estimate, over that estimate, where the run has ``atp_hvp``."""

    @property
    def sure(self) -> bool:
        """Whether the 95% interval of the difference excludes 0."""
        return self.half_width is not None and abs(self.difference) > self.half_width

    @property
    def flagged(self) -> bool:
        """Whether the second order says that the estimate is not to be relied on."""
        return self.unreliability is not None and self.unreliability >= FLAGGED


def flags_of(disagreements: list[Disagreement], kind: str) -> str | None:
    """Say how many of the heads that are surely off the second order flagged; None where there is nothing to say."""
    known = [row for row in disagreements if row.sure and row.unreliability is not None]
    if not known:
        return None
    flagged = sum(row.flagged for row in known)
    what = f"{kind} that is" if len(known) == 1 else f"{len(known)} {kind}s that are"
    return (
        f"The second order flagged {flagged} of the {what} surely off: there it changes the mean estimate by "
        f"{round(100 * FLAGGED)}% or more."
    )


def disagreements_of(
    effects: pl.DataFrame, off: pl.DataFrame, calibration: Calibration, others: pl.DataFrame
) -> list[Disagreement]:
    """Put rows of mean effects beside what else is known of the same heads.

    Args:
        effects: of all heads, see `attrib_batch.analysis.mean_effects`.
        off: the rows that are shown.
        calibration: of the component.
        others: of `Beside`.
    """
    largest = max(map(abs, effects.get_column("exact")), default=0.0)
    calibrated = {(layer, head): Value(*rest) for layer, head, *rest in calibration.rows.iter_rows()}
    beside = {(layer, head): rest for layer, head, *rest in others.iter_rows()}
    return [
        Disagreement(
            name=head_name(row),
            **{key: row[key] for key in ("layer", "head", "estimate", "exact", "difference", "half_width")},
            share=row["difference"] / largest if largest else None,
            calibrated=calibrated.get((row["layer"], row["head"]), Value(None, None, None)),
            refined=refined,
            unreliability=unreliability,
        )
        for row in off.iter_rows(named=True)
        for refined, unreliability in (beside.get((row["layer"], row["head"]), (None, None)),)
    ]
