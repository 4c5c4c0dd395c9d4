"""How alike the cells of a sweep rank heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from attrib_batch.analysis.comparison.matching import match_heads, means_of
from attrib_batch.analysis.comparison.orientation import towards_clean
from attrib_batch.analysis.places import is_at
from attrib_batch.analysis.summary import read_summary
from attrib_batch.analysis.tables import CELL, read_manifest
from attrib_batch.spec import Component
from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float

    from attrib_batch.analysis.comparison.matching import Columns, Values

CORRELATIONS = pl.Schema(
    {
        **{f"{name}_{side}": pl.Int64() if name == "run" else pl.String() for side in "ab" for name in ("run", *CELL)},
        "n_heads": pl.Int64(),  # heads that both have
        "spearman": pl.Float64(),  # -1 to 1; null where heads cannot be compared, or all have one value
    }
)
"""The columns of `rank_correlations`; ``run`` is 1 for ``out`` and 2 for ``other_out``."""


def rank_correlations(
    out: str | Path | Store,
    other_out: str | Path | Store | None = None,
    *,
    component: str = Component.Z,
    at: str = "last",
    relative_depth: bool = False,
) -> pl.DataFrame:
    """Compute Spearman's rank correlation of the means of heads between all cells, of one run or of two.

    Scores of different directions are turned as in `compare`; where one cell has magnitudes, magnitudes are ranked.

    Args:
        out: the run's directory, with a summary.
        other_out: another run's directory, with a summary.
        component: the component.
        at: ``last``, ``all`` or a role.
        relative_depth: as in `compare`; without it models of different depth have no correlation.

    Returns:
        The columns of `CORRELATIONS`: a row for every ordered pair of cells that have the component there, a cell with
        itself included.

    Raises:
        ValueError: no cell has the component there.
        OutputError: a run has not been summarised.
    """
    cells = []
    for run, place in enumerate([out] if other_out is None else [out, other_out], start=1):
        store = Store.parse(place)
        manifest, heads = read_manifest(store), read_summary(store).heads
        for plan in manifest.plan:
            here = (pl.col(name) == getattr(plan.cell, name) for name in CELL)
            rows = heads.filter(*here, pl.col("component") == str(component), is_at(at)).sort("layer", "head")
            if len(rows):
                cells.append((run, plan.cell, manifest.method(plan.cell.method), means_of(rows, "mean")))
    if not cells:
        raise ValueError(f"no cell has scores of {component!s} at {at!r}")
    found = []
    for run_a, cell_a, method_a, a in cells:
        for run_b, cell_b, method_b, b in cells:
            try:
                columns = match_heads(cell_a.model, cell_b.model, a, b, relative_depth=relative_depth)
            except ValueError:
                n_heads, rho = 0, None
            else:
                n_heads, rho = len(columns[0]), _spearman(a, b, columns, method_a, method_b)
            names = {f"{name}_a": getattr(cell_a, name) for name in CELL}
            names |= {f"{name}_b": getattr(cell_b, name) for name in CELL}
            found.append({"run_a": run_a, "run_b": run_b, **names, "n_heads": n_heads, "spearman": rho})
    return pl.DataFrame(found, schema_overrides=dict(CORRELATIONS)).select(CORRELATIONS.names())


def _spearman(
    a: Values, b: Values, columns: Columns, method_a: Mapping[str, Any], method_b: Mapping[str, Any]
) -> float | None:
    """Return the rank correlation of means, turned to the same side; None where it has none."""
    means = [
        towards_clean(method) * values.values[0, index]
        for values, index, method in ((a, columns[0], method_a), (b, columns[1], method_b))
    ]
    return rank_correlation(*means, magnitudes=has_magnitudes(method_a) or has_magnitudes(method_b))


def rank_correlation(a: Float[np.ndarray, " head"], b: Float[np.ndarray, " head"], *, magnitudes: bool) -> float | None:
    """Compute Spearman's rank correlation.

    Args:
        a: means of heads.
        b: of the same heads.
        magnitudes: rank them without their signs.

    Returns:
        -1 to 1; None where there are fewer than two heads, or all of one side are the same.
    """
    from scipy import stats  # takes longer to import than all else here

    if magnitudes:
        a, b = np.abs(a), np.abs(b)
    if len(a) < 2 or any((mean == mean[0]).all() for mean in (a, b)):
        return None
    return float(stats.spearmanr(a, b).statistic)
