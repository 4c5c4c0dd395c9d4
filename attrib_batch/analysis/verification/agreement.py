"""How well a method's scores agree with activation patching, in figures with intervals.

Every figure is over the verified pairs, from each pair's first difference on: before it both scores are exactly 0, and
counting them would only flatter. A figure's name is ``statistic@scope``.

**Scopes.** ``end`` is the role of that name, or the last position where no verified pair has the role; ``all`` is every
position, and left out where only some were measured.

**Over single scores** (pair, layer, head, position), with x the exact score and y the estimate:

- ``pearson``; ``spearman``, the Pearson correlation of ranks (ties get their mean rank).
- ``slope``: least squares of y on x; 1 where estimates have the right size, below 1 where they are too small.
- ``sign_agreement``: share of equal signs where |x| is above 1% of its largest; null for magnitudes.
- ``mean_absolute_error``: mean of |y - x|, and ``mean_absolute_exact``, the mean of |x| to compare it with.

**Over mean maps**, one element per (layer, head): the mean over pairs of the sum over the scope's positions. For
components without heads, one per layer at ``end`` and one per (layer, position) at ``all``, where a pair without the
position counts as 0:

- ``map_pearson``, ``map_spearman``, ``map_sign_agreement``.
- ``top_10_recall``: share of the 10 elements with the largest absolute mean exact effect that are among the 10 with the
  largest absolute mean estimate; null for a map of 10 elements or fewer.

**Intervals** are 95% percentile bootstrap intervals over sampling units; null for one unit. ``spearman`` resamples the
ranks of the whole sample, and ``sign_agreement`` keeps the whole sample's threshold; figures over maps are computed
anew in every resample. A resampled mean map is noisier than the sample's own, so where most heads do nothing the
interval of ``map_spearman``, say, may lean to one side of its value.

A method whose scores are magnitudes (``atp_star``) is compared with absolute exact scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.resampling import blocks, draw_counts, interval, sum_by_unit
from attrib_batch.analysis.tables import read_manifest
from attrib_batch.analysis.verification.verified import Verified, read_verified, verified_cells
from attrib_batch.errors import OutputError
from attrib_batch.storage.store import Store
from attrib_batch.tables import VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from attrib_batch.spec import Component

AGREEMENT = pl.Schema(
    {
        "model": pl.String(),
        "dataset": pl.String(),
        "method": pl.String(),  # the method that was verified
        "component": pl.String(),
        "statistic": pl.String(),  # statistic@scope, see the module
        "value": pl.Float64(),  # null where undefined, such as a correlation with a constant
        "low": pl.Float64(),  # ends of the 95% interval
        "high": pl.Float64(),
    }
)
"""``OUT/verification/agreement.parquet``: one row per (cell, component, statistic)."""

SCOPES = ("end", "all")
TOP = 10

_FILE = f"{VERIFICATION}/agreement.parquet"
_SMALL = 0.01


def write_agreement(out: str | Path | Store, *, seed: int, resamples: int = 1000) -> Path | str:
    """Compare every verified cell with its exact scores and write the figures.

    Args:
        out: the run's directory.
        seed: of the bootstrap; the same seed gives the same table.
        resamples: of the bootstrap.

    Returns:
        The path of the table; read it with `read_agreement`.

    Raises:
        OutputError: nothing has been verified, or exact scores and estimates do not match.
    """
    store = Store.parse(out)
    manifest, cells = read_manifest(store), verified_cells(store)
    if not cells:
        raise OutputError(
            f"{store.root} has no exact scores in {VERIFICATION}: run attrib-batch verify {store.root} first."
        )
    found = [
        (cell.model, cell.dataset, cell.method, *row)
        for cell in cells
        for row in agreement_of(read_verified(store, cell, manifest), seed=seed, resamples=resamples)
    ]
    table = pl.DataFrame(found, schema=AGREEMENT, orient="row")
    store.write_table(_FILE, table.to_arrow(compat_level=pl.CompatLevel.oldest()))
    return agreement_path(store)


def agreement_path(out: str | Path | Store) -> Path | str:
    """Return where `write_agreement` writes."""
    return Store.parse(out).path(_FILE)


def has_agreement(out: str | Path | Store) -> bool:
    """Return whether a run has been verified."""
    return Store.parse(out).exists(_FILE)


def read_agreement(out: str | Path | Store) -> pl.DataFrame:
    """Read the table that `write_agreement` writes.

    Raises:
        OutputError: the run has not been verified.
    """
    if not has_agreement(out):
        raise OutputError(f"{out} has no {_FILE}: run attrib-batch verify {out} first.")
    return pl.read_parquet(Store.parse(out).read_bytes(_FILE))


_Row = tuple[str, str, float | None, float | None, float | None]


def agreement_of(verified: Verified, *, seed: int, resamples: int) -> Iterator[_Row]:
    """Compute the figures of one cell: component, statistic, value, low, high."""
    counts = draw_counts(verified.n_units, resamples if verified.n_units > 1 else 0, seed)
    for component in verified.components:
        of_component = verified.rows.filter(pl.col("component") == component)
        for scope in SCOPES:
            rows = of_component.filter("at_end") if scope == "end" else of_component
            if rows.is_empty() or (scope == "all" and not verified.everywhere):
                continue
            found = _of_scores(rows, counts) | _of_maps(rows, counts, _element(component, scope))
            for name, values in found.items():
                known = interval(values) if not (verified.magnitudes and "sign" in name) else (None, None, None)
                yield str(component), f"{name}@{scope}", *known


def _element(component: Component, scope: str) -> list[str]:
    if component.has_heads:
        return ["layer", "head"]
    return ["layer"] if scope == "end" else ["layer", "position"]


def _of_scores(rows: pl.DataFrame, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute statistics over single scores, in the sample and in each resample."""
    from scipy.stats import rankdata  # takes longer to import than all else here

    unit, exact, estimate = (rows.get_column(name).to_numpy() for name in ("unit", "exact", "estimate"))
    n_units = counts.shape[1]
    size = np.abs(exact)
    above = size > _SMALL * size.max(initial=0.0)
    agree = above & (np.sign(exact) == np.sign(estimate))
    sums = sum_by_unit(unit, n_units, np.ones(len(unit)), np.abs(estimate - exact), size, above, agree)
    n, error, total, n_above, n_agree = (counts @ sums).T
    pearson, slope = _correlation(unit, exact, estimate, counts)
    spearman, _ = _correlation(unit, rankdata(exact), rankdata(estimate), counts)
    return {
        "pearson": pearson,
        "spearman": spearman,
        "slope": slope,
        "sign_agreement": _ratio(n_agree, n_above),
        "mean_absolute_error": _ratio(error, n),
        "mean_absolute_exact": _ratio(total, n),
    }


def _correlation(unit: np.ndarray, x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's correlation and the slope of y on x, from moments per unit."""
    scale_x, scale_y = (max(np.abs(values).max(initial=0.0), np.finfo(float).tiny) for values in (x, y))
    # Moments about a mean near that of any resample lose no digits.
    x, y = (x - x.mean()) / scale_x, (y - y.mean()) / scale_y
    sums = sum_by_unit(unit, counts.shape[1], np.ones(len(unit)), x, y, x * x, y * y, x * y)
    n, sx, sy, sxx, syy, sxy = (counts @ sums).T
    mean_x, mean_y = _ratio(sx, n), _ratio(sy, n)
    var_x, var_y, cov = (
        _ratio(total, n) - product for total, product in ((sxx, mean_x**2), (syy, mean_y**2), (sxy, mean_x * mean_y))
    )
    return _pearson(var_x, var_y, cov), _ratio(cov, np.where(_varies(var_x), var_x, 0)) * (scale_y / scale_x)


def _of_maps(rows: pl.DataFrame, counts: np.ndarray, element: list[str]) -> dict[str, np.ndarray]:
    """Compute statistics over mean maps, in the sample and in each resample."""
    n_units = counts.shape[1]
    place = rows.select(pl.struct(element).rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    width = int(place.max(initial=-1)) + 1
    at = rows.get_column("unit").to_numpy() * width + place
    sums = [
        np.bincount(at, rows.get_column(name).to_numpy(), n_units * width).reshape(n_units, width)
        for name in ("exact", "estimate")
    ]
    pairs = rows.select("unit", "pair_id").unique().get_column("unit").to_numpy()
    n_pairs = np.bincount(pairs, minlength=n_units)
    pieces = []
    for block in blocks(counts, width):
        exact, estimate = (_ratio(block @ total, (block @ n_pairs)[:, None]) for total in sums)
        pieces.append(_map_statistics(exact, estimate))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _map_statistics(exact: np.ndarray, estimate: np.ndarray) -> dict[str, np.ndarray]:
    """Compute statistics over the elements of maps, each of shape (resample, element)."""
    from scipy.stats import rankdata

    size = np.abs(exact)
    above = size > _SMALL * size.max(axis=1, keepdims=True, initial=0.0)
    agree = above & (np.sign(exact) == np.sign(estimate))
    return {
        "map_pearson": _pearson_by_row(exact, estimate),
        "map_spearman": _pearson_by_row(rankdata(exact, axis=1), rankdata(estimate, axis=1)),
        "map_sign_agreement": _ratio(agree.sum(1), above.sum(1)),
        f"top_{TOP}_recall": _recall(size, np.abs(estimate)),
    }


def _recall(exact: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    if exact.shape[1] <= TOP:
        return np.full(len(exact), np.nan)
    chosen = [np.zeros(exact.shape, dtype=bool) for _ in range(2)]
    for mask, size in zip(chosen, (exact, estimate), strict=True):
        np.put_along_axis(mask, np.argsort(-size, axis=1, kind="stable")[:, :TOP], values=True, axis=1)
    share: np.ndarray = (chosen[0] & chosen[1]).sum(1) / TOP
    return share


def _pearson_by_row(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tiny = np.finfo(float).tiny
    x, y = (values / np.maximum(np.abs(values).max(1, keepdims=True, initial=0.0), tiny) for values in (x, y))
    x, y = (values - values.mean(1, keepdims=True) for values in (x, y))
    return _pearson((x * x).mean(1), (y * y).mean(1), (x * y).mean(1))


def _pearson(var_x: np.ndarray, var_y: np.ndarray, cov: np.ndarray) -> np.ndarray:
    varies = _varies(var_x) & _varies(var_y)
    clipped: np.ndarray = np.clip(_ratio(cov, np.sqrt(np.where(varies, var_x * var_y, 0))), -1, 1)
    return clipped


def _varies(variance: np.ndarray) -> np.ndarray:
    """Return whether values of size up to 1 vary by more than rounding."""
    varies: np.ndarray = variance > 1e-24
    return varies


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    quotient: np.ndarray = np.divide(numerator, np.where(denominator == 0, np.nan, denominator))
    return quotient
