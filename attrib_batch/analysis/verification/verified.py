"""Estimated scores side by side with the exact ones of a verified sample of pairs.

``OUT/verification/scores`` holds activation patching of some of the pairs in ``OUT/scores``, in the same schema. The
manifest's stage ``verification`` says which exact methods there are; one of the same metric and direction as a method
of the job measures what that method estimates. Runs of earlier releases have no such stage: there a file of exact
scores lies in the partition of the method that it was measured for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from attrib_batch.analysis.tables import committed_parts, read_manifest, scan
from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell, Component
from attrib_batch.spec.method import reference_of
from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.storage.store import Store, StoredFile
from attrib_batch.tables import VERIFICATION, Chunk, Table

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from attrib_batch.tables import Manifest

END = "end"
"""The role whose positions are compared first: where the prompt is continued."""

_KEYS = ("pair_id", "component", "layer", "head", "position")
_COMPONENTS = pl.Enum([str(component) for component in Component])


@dataclass(frozen=True)
class Verified:
    """The estimated and the exact scores of one cell's verified pairs."""

    cell: Cell
    rows: pl.DataFrame
    """One row per (pair, component, layer, head, position) from the pair's first difference on: those keys, then

    - ``unit`` (int64): the sampling unit, counted from 0; pairs of one ``group`` are one unit.
    - ``at_end`` (bool): whether the position is the one that `at` names.
    - ``estimate``, ``exact`` (float64): scores in metric units.
    """
    n_units: int
    has_role: bool
    """Whether ``at_end`` is the role `END`; it is the last position where no pair of the sample has that role."""
    magnitudes: bool
    """Whether the method's scores are magnitudes; ``exact`` then holds absolute values too."""
    everywhere: bool
    """Whether every position of the pairs was measured, from their first differences on."""

    @property
    def at(self) -> str:
        """Where ``at_end`` is, as a phrase."""
        return f"“{END}”" if self.has_role else "the last position"

    @property
    def n_pairs(self) -> int:
        """How many pairs were verified."""
        return self.rows.get_column("pair_id").n_unique()

    @property
    def components(self) -> list[Component]:
        """The components that were verified, in the order of the forward pass."""
        present = set(self.rows.get_column("component").unique())
        return [component for component in Component if component in present]


def verified_cells(out: str | Path | Store) -> list[Cell]:
    """List the cells of the plan that have exact scores, in its order.

    Raises:
        OutputError: ``out`` is not a run's directory.
    """
    manifest = read_manifest(out)
    return [
        entry.cell
        for entry in manifest.plan
        if any(file.store.count_rows(file.relative) for file in _exact_files(out, entry.cell, manifest))
    ]


def read_verified(out: str | Path | Store, cell: Cell, manifest: Manifest | None = None) -> Verified:
    """Join a cell's exact scores with its estimates of the same pairs.

    Memory is bounded by the sample and one part of the run's scores; parts without a verified pair are not opened.

    Raises:
        OutputError: a score without its counterpart, a pair verified twice, or scores that are not finite.
    """
    manifest = manifest or read_manifest(out)
    both = read_both(out, cell, manifest)
    measured = both.rows.filter(pl.col("exact").is_not_null())
    has_role = bool((measured.get_column("role") == END).any())
    at_end = (pl.col("role") == END).fill_null(value=False) if has_role else pl.col("is_last")
    in_suffix = pl.col("position") >= pl.col("first_difference")
    rows = (
        measured.filter(in_suffix).select(*_KEYS, "unit", at_end=at_end, estimate="estimate", exact="exact").sort(_KEYS)
    )
    everywhere = len(rows) == len(both.rows.filter(in_suffix))
    return Verified(cell, rows, both.n_units, has_role=has_role, magnitudes=both.magnitudes, everywhere=everywhere)


@dataclass(frozen=True)
class Both:
    """All estimated scores of the pairs of which any was measured, beside the exact ones."""

    rows: pl.DataFrame
    """One row per (pair, component, layer, head, position), the pair's shared prefix included: those keys, then

    - ``unit`` (int64), ``role`` (string), ``is_last`` (bool), ``first_difference`` (int32).
    - ``estimate``, ``exact`` (float64): in metric units; ``exact`` is null where nothing was measured, and absolute
      where estimates are magnitudes.
    """
    n_units: int
    magnitudes: bool


def read_both(out: str | Path | Store, cell: Cell, manifest: Manifest, among: Collection[int] | None = None) -> Both:
    """Join a cell's estimates of verified pairs with their exact scores; components without any are left out.

    Args:
        out: the run's directory.
        cell: one that was verified.
        manifest: of the run.
        among: the ids of the pairs that are read; all that were verified by default.

    Raises:
        OutputError: see `read_verified`.
    """
    measured = scan(_exact_files(out, cell, manifest), Table.SCORES)
    if among is not None:
        measured = measured.filter(pl.col("pair_id").is_in(list(among)))
    exact = measured.select(*_keys(), exact="score").collect()
    pairs, estimates = _estimates(out, cell, exact.get_column("pair_id").unique())
    wanted = estimates
    if manifest.stage(VERIFICATION) is not None:
        # Methods of other components may share the measurement, and it may be of some positions alone.
        exact = exact.join(estimates.select("component").unique(), on="component", how="semi")
        if len(exact_cells(cell, manifest)) > 1:
            exact = exact.unique(_KEYS, keep="first")  # what was measured at more positions later, too
        places = ("pair_id", "component", "position")
        wanted = estimates.join(exact.select(places).unique(), on=places, how="semi")
    _check(cell, wanted.join(exact, on=_KEYS, how="full", nulls_equal=True, coalesce=True), exact, wanted)
    magnitudes = has_magnitudes(manifest.method(cell.method))
    truth = pl.col("exact").cast(pl.Float64)
    rows = (
        estimates.join(exact.select("component").unique(), on="component", how="semi")
        .join(exact, on=_KEYS, how="left", nulls_equal=True)
        .join(pairs, on="pair_id")
        .select(
            *_KEYS,
            "unit",
            "role",
            "first_difference",
            is_last=pl.col("position") == pl.col("n_tokens") - 1,
            estimate=pl.col("estimate").cast(pl.Float64),
            exact=truth.abs() if magnitudes else truth,
        )
    )
    return Both(rows, pairs.get_column("unit").n_unique(), magnitudes=magnitudes)


def _exact_files(out: str | Path | Store, cell: Cell, manifest: Manifest) -> list[StoredFile]:
    store = Store.parse(out).below(VERIFICATION)
    return [
        store.file(Chunk(measured, *part).path(Table.SCORES))
        for measured in exact_cells(cell, manifest)
        for part in sorted(store.parts(Table.SCORES, measured.partition))
    ]


def exact_cells(cell: Cell, manifest: Manifest) -> list[Cell]:
    """Return the cells of the verification whose scores measure what a cell of the job estimates."""
    stage, method = manifest.stage(VERIFICATION), manifest.method(cell.method)
    if stage is None:
        return [cell]
    return [
        Cell(cell.model, cell.dataset, exact["id"])
        for exact in stage.job.get("methods", ())
        if all(exact.get(key) == method.get(key) for key in ("metric", "direction"))
        and reference_of(exact) == reference_of(method)
        and set(exact.get("components", ())) & set(method.get("components", ()))
    ]


def _keys() -> list[pl.Expr]:
    return [pl.col(name).cast(_COMPONENTS) if name == "component" else pl.col(name) for name in _KEYS]


def _estimates(out: str | Path | Store, cell: Cell, wanted: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the verified pairs (``pair_id, n_tokens, first_difference, unit``) and their estimated scores."""
    chosen = pl.col("pair_id").is_in(wanted.implode())
    pairs, scores = [], []
    for part in [None, *committed_parts(out, cell)]:
        baselines = scan([part.baselines] if part else [], Table.BASELINES).filter(chosen)
        here = baselines.select("pair_id", "n_tokens", "first_difference", "group").collect()
        if part is None or len(here):
            pairs.append(here)
            known = pl.col("pair_id").is_in(here.get_column("pair_id").implode())
            rows = scan([part.scores] if part else [], Table.SCORES).filter(known)
            role = pl.col("role").cast(pl.String)
            scores.append(rows.select(*_keys(), role, estimate="score").collect(engine="streaming"))
    pair_id, group = pl.col("pair_id"), pl.col("group")
    first = pl.when(group.is_null()).then(pair_id).otherwise(pair_id.min().over("group"))
    numbered = pl.concat(pairs).with_columns(unit=first.rank("dense").cast(pl.Int64) - 1).drop("group")
    return numbered, pl.concat(scores)


def _check(cell: Cell, joined: pl.DataFrame, exact: pl.DataFrame, estimates: pl.DataFrame) -> None:
    again = "Run attrib-batch verify again."
    alone = joined.filter(pl.col("estimate").is_null() | pl.col("exact").is_null())
    if len(alone):
        n_exact = alone.get_column("estimate").null_count()
        raise OutputError(
            f"{cell}: the verification does not match the run's scores: {n_exact:,} exact scores have no estimate and "
            f"{len(alone) - n_exact:,} estimates of the verified pairs have no exact score (first: {_name(alone)}). "
            f"{again}"
        )
    if not len(joined) == len(exact) == len(estimates):
        several = joined.filter(joined.select(_KEYS).is_duplicated())
        raise OutputError(
            f"{cell}: some scores of the verified pairs are there more than once (first: {_name(several)}). "
            f"Remove {VERIFICATION}/{Table.SCORES}/{cell.partition}. {again}"
        )
    for column, what in (("estimate", Table.SCORES.value), ("exact", f"{VERIFICATION}/{Table.SCORES}")):
        bad = joined.filter(~pl.col(column).is_finite())
        if len(bad):
            raise OutputError(
                f"{cell}: {len(bad):,} scores in {what}/ are NaN or infinite (first: {_name(bad)}). Such scores are "
                "never stored: the file is damaged, remove it and compute it again."
            )


def _name(rows: pl.DataFrame) -> str:
    first: dict[str, Any] = rows.select(_KEYS).sort(_KEYS).row(0, named=True)
    return ", ".join(f"{key} {value}" for key, value in first.items() if value is not None)
