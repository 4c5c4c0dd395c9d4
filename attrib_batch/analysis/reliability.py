"""How far first-order scores are to be believed: what the second order adds to them, where a run has both.

Zhang, Wang 2026 (arXiv 2606.09899): |d . H d| / (2 |g . d|), the second-order term of an effect over the first-order
one. ``atp`` stores the first, g . d, and ``atp_hvp`` both together, so the quotient is |atp_hvp - atp| / |atp|.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.tables import CELL, read_manifest, scan_scores
from attrib_batch.errors import OutputError
from attrib_batch.spec.method import reference_of

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.spec import Cell
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Manifest

FIRST, SECOND = "atp", "atp_hvp"
"""The kinds of method whose scores are the first order, and the first and second order."""
FLAGGED = 0.5
"""From this unreliability on a first-order score is flagged: the second order changes it by half or more."""
_NODE = ("pair_id", "component", "layer", "head", "position")


def reliability(
    out: str | Path | Store, *, model: str | None = None, dataset: str | None = None, method: str | None = None
) -> pl.LazyFrame:
    """Return how unreliable each first-order score is.

    Args:
        out: the run's directory.
        model: only this model; likewise ``dataset`` and ``method``, the id of a method of kind ``atp``.
        dataset: only this dataset.
        method: only this method.

    Returns:
        For every score of a method of kind ``atp`` of which one of kind ``atp_hvp`` with the same metric, direction and
        reference scored the same: the columns of ``schema.SCORES`` after the names of the cell, ``second_order`` in
        metric units, and ``unreliability``, without a unit: above 1 the second order is the larger; infinite where the
        first is 0 and the second is not, and null where both are.

    Raises:
        OutputError: ``out`` is not a run's directory, or has no two such methods.
    """
    manifest = read_manifest(out)
    wanted = {"model": model, "dataset": dataset, "method": method}
    found = [
        _of_cell(out, first, second)
        for first, second in _twins(manifest)
        if all(name is None or getattr(first, key) == name for key, name in wanted.items())
    ]
    if not found:
        raise OutputError(
            f"{out} has no scores of kind {FIRST} with those of kind {SECOND} of the same metric, direction and "
            f"reference beside them, as far as asked for; add a method of kind {SECOND} to the job and run it again"
        )
    return pl.concat(found)


def _twins(manifest: Manifest) -> list[tuple[Cell, Cell]]:
    """Return the cells of first orders, each with the one that adds the second."""
    cells = [plan.cell for plan in manifest.plan if manifest.method(plan.cell.method).get("kind") == FIRST]
    return [(cell, second) for cell in cells for second in same_question(manifest, cell, SECOND)]


def same_question(manifest: Manifest, cell: Cell, kind: str) -> list[Cell]:
    """Return the cells of the same pairs in which a method of a kind has the metric, direction and reference of one."""
    method = manifest.method(cell.method)
    found = []
    for other in (plan.cell for plan in manifest.plan):
        theirs = manifest.method(other.method)
        if (
            theirs.get("kind") == kind
            and (other.model, other.dataset) == (cell.model, cell.dataset)
            and all(theirs.get(key) == method.get(key) for key in ("metric", "direction"))
            and reference_of(theirs) == reference_of(method)
        ):
            found.append(other)
    return found


def _of_cell(out: str | Path | Store, first: Cell, second: Cell) -> pl.LazyFrame:
    of_first, of_second = (
        scan_scores(out, model=cell.model, dataset=cell.dataset, method=cell.method) for cell in (first, second)
    )
    score = pl.col("score").cast(pl.Float64)
    return (
        of_first.join(
            of_second.select(*_NODE, corrected="score"), on=list(_NODE), nulls_equal=True, maintain_order="left"
        )
        .with_columns(second_order=pl.col("corrected").cast(pl.Float64) - score)
        .with_columns(
            unreliability=pl.when((pl.col("second_order") != 0) | (score != 0)).then(
                pl.col("second_order").abs() / score.abs()
            )
        )
        .select(*CELL, *_NODE, "role", "score", "second_order", "unreliability")
    )
