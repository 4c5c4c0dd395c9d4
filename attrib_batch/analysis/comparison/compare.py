"""Two cells side by side, of one run or of two: the difference of every head's mean, with its interval."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from attrib_batch.analysis.comparison.matching import match_heads, means_of
from attrib_batch.analysis.comparison.orientation import towards_clean
from attrib_batch.analysis.comparison.paired import Side, common_pairs, paired_differences
from attrib_batch.analysis.places import select_cells
from attrib_batch.analysis.statistics.moments import half_width
from attrib_batch.analysis.summary import read_summary
from attrib_batch.analysis.tables import CELL, committed_parts, gap_or_null, read_manifest, scan
from attrib_batch.spec import Cell
from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from attrib_batch.tables import Manifest

COMPARISON = pl.Schema(
    {
        **{f"{name}_{side}": pl.String() for side in "ab" for name in CELL},
        "component": pl.String(),
        "scope": pl.String(),  # role, last or all, as in the heads summary
        "role": pl.String(),
        "layer": pl.Int16(),  # of a
        "head": pl.Int16(),  # of both; null for components without heads
        "layer_b": pl.Int16(),  # another one only where models are compared by relative depth
        "mean_a": pl.Float64(),  # shares of the gap, or metric units where raw means are compared
        "mean_b": pl.Float64(),
        "difference": pl.Float64(),  # mean_a - mean_b
        "sem": pl.Float64(),  # its cluster-robust standard error; null for one sampling unit
        "low": pl.Float64(),  # its 95 % interval
        "high": pl.Float64(),
        "n_pairs_a": pl.Int64(),
        "n_pairs_b": pl.Int64(),
        "paired": pl.Boolean(),  # whether the difference was taken pair by pair, over the pairs that both scored
    }
)
"""The columns of `compare`: one row per (component, scope, role, layer, head) that both cells have."""


@dataclass(frozen=True)
class _Chosen:
    """One of two cells that are compared."""

    store: Store
    manifest: Manifest
    cell: Cell

    @property
    def method(self) -> dict[str, Any]:
        return self.manifest.method(self.cell.method)

    @property
    def content(self) -> str | None:
        """The hash of the dataset's content; None where the manifest has none."""
        content = self.manifest.scoring.identities.datasets.get(self.cell.dataset, {}).get("content")
        return None if content is None else str(content)

    def side(self, sign: int) -> Side:
        positions = self.manifest.positions_of(self.cell.method)
        components = tuple(self.method.get("components", ()))
        return Side(self.cell, committed_parts(self.store, self.cell), positions, components, sign)


def compare(
    out: str | Path | Store,
    a: Mapping[str, str] | Cell,
    b: Mapping[str, str] | Cell,
    other_out: str | Path | Store | None = None,
    *,
    normalized: bool = True,
    relative_depth: bool = False,
) -> pl.DataFrame:
    """Compute the difference between the means of two cells, head by head, with a 95 % interval.

    Where both scored the same pairs (datasets of the same content, equal ids), the difference is taken pair by pair,
    over the pairs that both scored; the interval is then that of a mean (cluster-robust, t), and much narrower. Else
    the variances of the two means are added (Welch). Scores of different directions are turned so that those of what
    brings about the clean behaviour are positive in both.

    Args:
        out: the run's directory.
        a: which cell of it: ``model``, ``dataset`` and ``method``, as far as needed to tell it from others.
        b: the other cell, likewise; what it does not name is as in ``a`` where several would do.
        other_out: another run's directory that ``b`` is of; the same run where absent.
        normalized: compare means as shares of the cell's own gap; otherwise in metric units.
        relative_depth: compare a layer of one model with that of the other which is at the nearest relative depth, 0
            for the first and 1 for the last. Layers correspond then, heads do not: they are taken by their number.

    Returns:
        The columns of `COMPARISON`.

    Raises:
        ValueError: cells cannot be told apart or cannot be compared: models of different depth (without
            ``relative_depth``), raw scores of different metrics, magnitudes and signed scores, no gap to divide by.
        OutputError: a folder is no run's directory, a part is damaged, or, where pairs differ, there is no summary.
    """
    stores = Store.parse(out), Store.parse(out if other_out is None else other_out)
    manifests = [read_manifest(store) for store in stores]
    one = _Chosen(stores[0], manifests[0], _only_cell(manifests[0], a, None))
    other = _Chosen(stores[1], manifests[1], _only_cell(manifests[1], b, one.cell))
    same_run = stores[0].resolved() == stores[1].resolved()
    if same_run and one.cell == other.cell:
        raise ValueError(f"{one.cell} would be compared with itself: name two cells, or another run")
    _check_units(one, other, normalized=normalized)
    signs = [towards_clean(side.method, normalized=normalized) for side in (one, other)]
    if signs[0] == signs[1]:
        signs = [1, 1]
    if (same_run and one.cell.dataset == other.cell.dataset) or (one.content and one.content == other.content):
        sides = one.side(signs[0]), other.side(signs[1])
        pairs = common_pairs(*sides)
        if len(pairs):
            return _paired(*sides, pairs, normalized=normalized, relative_depth=relative_depth)
    return _unpaired(one, other, signs, normalized=normalized, relative_depth=relative_depth)


def compare_runs(
    out: str | Path | Store,
    other_out: str | Path | Store | None,
    a: Mapping[str, str] | None,
    b: Mapping[str, str] | None,
    *,
    normalized: bool = True,
    relative_depth: bool = False,
) -> pl.DataFrame:
    """Compare two cells; where none is named, the two of one run, or those that two runs have under the same names.

    Arguments and columns are those of `compare`.

    Raises:
        ValueError: as `compare`, or there are not two such cells.
    """
    chosen = partial(compare, normalized=normalized, relative_depth=relative_depth)
    if a is not None or b is not None:
        return chosen(out, a or {}, b or {}, other_out)
    cells = [plan.cell for plan in read_manifest(out).plan]
    if other_out is None:
        if len(cells) != 2:
            raise ValueError(f"name two cells with a and b; there are: {'; '.join(map(str, cells))}")
        return chosen(out, cells[0], cells[1])
    others = [plan.cell for plan in read_manifest(other_out).plan]
    same = [cell for cell in cells if cell in others]
    if not same:
        if len(cells) == len(others) == 1:
            return chosen(out, cells[0], others[0], other_out)
        raise ValueError(
            f"the runs have no cell of the same names: choose with a and b; {'; '.join(map(str, cells))} and "
            f"{'; '.join(map(str, others))}"
        )
    return pl.concat([chosen(out, cell, cell, other_out) for cell in same])


def _only_cell(manifest: Manifest, wanted: Mapping[str, str] | Cell, like: Cell | None) -> Cell:
    """Return the one cell that has the names asked for; of several the one most like another."""
    names = {key: getattr(wanted, key) for key in CELL} if isinstance(wanted, Cell) else dict(wanted)
    cells = select_cells(manifest, names)
    for key in CELL:
        if like is not None and len(cells) > 1 and key not in names:
            cells = [cell for cell in cells if getattr(cell, key) == getattr(like, key)] or cells
    if len(cells) > 1:
        raise ValueError(f"several cells: choose one with model, dataset, method; {'; '.join(map(str, cells))}")
    return cells[0]


def _check_units(a: _Chosen, b: _Chosen, *, normalized: bool) -> None:
    if has_magnitudes(a.method) != has_magnitudes(b.method):
        signed, without = (b, a) if has_magnitudes(a.method) else (a, b)
        raise ValueError(
            f"{without.cell} has magnitudes and {signed.cell} signed scores: their difference means nothing; compare "
            "their ranks"
        )
    metrics = [side.method.get("metric") for side in (a, b)]
    if not normalized and metrics[0] != metrics[1]:
        raise ValueError(f"raw scores of {metrics[0]} and {metrics[1]} have different units: compare normalised ones")


def _paired(a: Side, b: Side, pairs: pl.DataFrame, *, normalized: bool, relative_depth: bool) -> pl.DataFrame:
    match = partial(match_heads, a.cell.model, b.cell.model, relative_depth=relative_depth)
    gaps = (_gap(a, pairs), _gap(b, pairs)) if normalized else None
    frames = [COMPARISON.to_frame()]
    for found in paired_differences(a, b, pairs, match, gaps=gaps):
        groups = np.full(len(found.sem), found.n_units)
        frames.append(
            pl.DataFrame(
                {
                    name: getattr(found, name)
                    for name in (field.name for field in fields(found))
                    if name not in {"place", "n_pairs", "n_units"}
                }
                | {"width": half_width(found.sem, groups)}
            )
            .with_columns(
                *_names(a.cell, "a"),
                *_names(b.cell, "b"),
                **{key: pl.lit(value, pl.String) for key, value in found.place._asdict().items()},
                head=pl.when(pl.col("head") >= 0).then("head"),
                n_pairs_a=pl.lit(found.n_pairs),
                n_pairs_b=pl.lit(found.n_pairs),
                paired=pl.lit(value=True),
            )
            .pipe(_finished)
        )
    return _sorted(pl.concat(frames))


def _gap(side: Side, pairs: pl.DataFrame) -> float:
    """Return the mean gap of a cell over pairs.

    Raises:
        ValueError: it is about 0.
    """
    chosen = scan([part.baselines for part in side.parts], Table.BASELINES).join(
        pairs.lazy().select("pair_id"), on="pair_id", how="semi"
    )
    gap = chosen.select(gap_or_null()).collect(engine="streaming").item()
    if gap is None:
        raise _no_gap(side.cell)
    return float(gap)


def _no_gap(cell: Cell) -> ValueError:
    return ValueError(f"{cell}: clean and corrupted metric are the same on average; compare with normalized=False")


def _unpaired(a: _Chosen, b: _Chosen, signs: list[int], *, normalized: bool, relative_depth: bool) -> pl.DataFrame:
    suffix = "_normalized" if normalized else ""
    both = []
    for side in (a, b):
        here = (pl.col(name) == getattr(side.cell, name) for name in CELL)
        rows = read_summary(side.store).heads.filter(*here)
        if len(rows) and rows.get_column(f"mean{suffix}").null_count() == len(rows):
            raise _no_gap(side.cell)
        both.append(rows.with_columns(m=f"mean{suffix}", s=f"sem{suffix}"))
    frames = [COMPARISON.to_frame()]
    places = ["component", "scope", "role"]
    others = both[1].partition_by(places, as_dict=True)
    for place, rows in both[0].partition_by(places, as_dict=True).items():
        if place in others:
            frames.append(_welch(a.cell, b.cell, rows, others[place], signs, relative_depth=relative_depth))
    return _sorted(pl.concat(frames))


def _welch(
    cell_a: Cell, cell_b: Cell, a: pl.DataFrame, b: pl.DataFrame, signs: list[int], *, relative_depth: bool
) -> pl.DataFrame:
    """Compare the means (``m``) of other pairs in one place, by their standard errors (``s``)."""
    columns = match_heads(cell_a.model, cell_b.model, means_of(a, "m"), means_of(b, "m"), relative_depth=relative_depth)
    one, other = (rows[index] for rows, index in zip((a, b), columns, strict=True))
    (var_a, df_a), (var_b, df_b) = (
        (rows.get_column("s").cast(pl.Float64).to_numpy() ** 2, rows.get_column("n_groups").to_numpy() - 1.0)
        for rows in (one, other)
    )
    variance = var_a + var_b
    with np.errstate(divide="ignore", invalid="ignore"):
        # Degrees of freedom by Welch and Satterthwaite; two means without any spread differ for sure.
        freedom = np.where(variance == 0, df_a + df_b, variance**2 / (var_a**2 / df_a + var_b**2 / df_b))
    sem = np.sqrt(variance)
    return one.select(
        *_names(cell_a, "a"),
        *_names(cell_b, "b"),
        "component",
        "scope",
        "role",
        "layer",
        "head",
        layer_b=other.get_column("layer"),
        mean_a=signs[0] * pl.col("m"),
        mean_b=signs[1] * other.get_column("m"),
        sem=pl.Series(sem),
        width=pl.Series(half_width(sem, freedom + 1)),
        n_pairs_a=pl.col("n_pairs"),
        n_pairs_b=other.get_column("n_pairs"),
        paired=pl.lit(value=False),
    ).pipe(_finished)


def _names(cell: Cell, side: str) -> list[pl.Expr]:
    return [pl.lit(getattr(cell, key)).alias(f"{key}_{side}") for key in CELL]


def _finished(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the difference and its interval (``width`` is half of it), and bring columns into order."""
    difference = pl.col("mean_a") - pl.col("mean_b")
    numbers = frame.with_columns(pl.col("sem", "width").fill_nan(None), difference=difference).with_columns(
        low=pl.col("difference") - pl.col("width"), high=pl.col("difference") + pl.col("width")
    )
    return numbers.select(COMPARISON.names()).cast(COMPARISON)


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort("component", "scope", "role", "layer", "head", nulls_last=True)
