"""``summarize``: the tables of a run become the small tables that people read.

The layout of every summary table is in `summary`; the statistics are in `moments`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from attrib_batch.analysis.statistics.intervals import add_inference, add_intervals
from attrib_batch.analysis.statistics.moments import HEAD_SCOPES, KEYS, Gap, statistics, stratum_statistics
from attrib_batch.analysis.statistics.passes import reduce_cell
from attrib_batch.analysis.statistics.stability import stability
from attrib_batch.analysis.statistics.units import bootstrap_cell
from attrib_batch.analysis.summary import (
    BASELINES,
    FAILURES,
    HEADS,
    POSITIONS,
    STABILITY,
    STRATA,
    SummaryPaths,
    write_summary,
)
from attrib_batch.analysis.tables import (
    CELL,
    committed_parts,
    failure_files,
    gap_or_null,
    pairs_of_parts,
    read_manifest,
    scan,
)
from attrib_batch.analysis.verification.calibrated import RandomSamples, calibrated_means
from attrib_batch.errors import OutputError
from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.spec import Cell
    from attrib_batch.tables import CellPlan

_ORDER = (
    "kind", "stratum", "component", "scope", "role", "layer", "head", "position", "top_k", "n_pairs", "stage", "error"
)  # fmt: skip


def summarize(out: str | Path | Store) -> SummaryPaths:
    """Reduce a run's committed scores, baselines and failures to ``OUT/summary/*.parquet``.

    It may run while the run does, and then covers what is committed. Memory stays bounded by one part file,
    however many there are.

    Args:
        out: the run's directory.

    Returns:
        Where the tables are; read them with `read_summary`.

    Raises:
        OutputError: ``out`` is not a run's directory, nothing is committed in it yet, or a part is damaged
            (scores that are not finite, or that do not match the baselines).
    """
    store = Store.parse(out)
    manifest = read_manifest(store)
    plan = manifest.plan
    if not any(store.parts(Table.SCORES, entry.cell.partition) for entry in plan):
        raise OutputError(f"{store.root} has no committed chunk yet: run the job into it first (attrib-batch run).")
    heads, positions, strata = [HEADS.to_frame()], [POSITIONS.to_frame()], [STRATA.to_frame()]
    agreement = [STABILITY.to_frame()]
    baselines, failures = [BASELINES.to_frame()], [FAILURES.to_frame()]
    samples = RandomSamples(store, manifest)
    for entry in plan:
        cell, parts = entry.cell, committed_parts(store, entry.cell)
        counts = _failures(store, cell)
        failures.append(_labelled(counts, cell, FAILURES))
        pairs = pairs_of_parts(parts) if parts else scan([], Table.BASELINES)
        baseline = _baselines(cell, entry, pairs, failed=int(counts.get_column("count").sum()))
        baselines.append(_labelled(baseline, cell, BASELINES))
        if parts:
            gap = _gap(baseline)
            at = manifest.positions_of(cell.method)
            reduced = reduce_cell(cell, parts, pairs, gap.mean, at)
            rows = add_inference(
                statistics(reduced.moments, KEYS, gap),
                bootstrap_cell(cell, parts, gap, at),
                magnitudes=has_magnitudes(manifest.method(cell.method)),
            )
            of_heads = pl.col("scope").is_in(list(map(str, HEAD_SCOPES)))
            known = rows.filter(of_heads)
            calibrated = calibrated_means(samples, cell, known)
            heads.append(_labelled(known.join(calibrated, on=KEYS, how="left", nulls_equal=True), cell, HEADS))
            positions.append(_labelled(rows.filter(~of_heads), cell, POSITIONS))
            agreement.append(_labelled(stability(reduced.blocks), cell, STABILITY))
            strata.append(_labelled(add_intervals(stratum_statistics(reduced.strata)), cell, STRATA))
    return write_summary(
        store,
        heads=pl.concat(heads),
        positions=pl.concat(positions),
        strata=pl.concat(strata),
        stability=pl.concat(agreement),
        baselines=pl.concat(baselines),
        failures=pl.concat(failures),
    )


def _gap(baseline: pl.DataFrame) -> Gap:
    [row] = baseline.iter_rows(named=True)
    return Gap(row["mean_difference"], row["sem_difference"], row["scored"], row["n_groups"], row["normalizable"])


def _labelled(frame: pl.DataFrame, cell: Cell, schema: pl.Schema) -> pl.DataFrame:
    """Add the cell's names to a frame, in the columns, types and row order in which it is stored."""
    named = frame.with_columns(
        model=pl.lit(cell.model), dataset=pl.lit(cell.dataset), method=pl.lit(cell.method)
    ).select(schema.names())
    order = (
        "kind",
        "stratum",
        "component",
        "scope",
        "role",
        "layer",
        "head",
        "position",
        "n_pairs",
        "top_k",
        "stage",
        "error",
    )
    keys = [key for key in (*CELL, *order) if key in schema]
    return named.cast(schema).sort(keys, nulls_last=True)


def _baselines(cell: Cell, entry: CellPlan, pairs: pl.LazyFrame, *, failed: int) -> pl.DataFrame:
    """Summarise in one row the metrics of a cell's scored pairs, and how many pairs were scored and failed."""
    clean, corrupted = pl.col("clean_metric"), pl.col("corrupted_metric")
    row = pairs.select(
        scored=pl.len(),
        distinct=pl.col("pair_id").n_unique(),
        non_finite=(~(clean.is_finite() & corrupted.is_finite())).sum(),
        mean_clean=clean.mean(),
        std_clean=clean.std(),
        mean_corrupted=corrupted.mean(),
        std_corrupted=corrupted.std(),
        mean_difference=(clean - corrupted).mean(),
        gap=gap_or_null(),
        share_clean_higher=(clean > corrupted).mean(),
        n_tokens_min=pl.col("n_tokens").min(),
        n_tokens_max=pl.col("n_tokens").max(),
    ).collect(engine="streaming")
    if non_finite := row.get_column("non_finite").item():
        raise OutputError(
            f"{cell}: {non_finite} pairs have a clean or corrupted metric that is NaN or infinite. A run "
            "lists such pairs as failures and never stores them: remove the damaged parts, run the job again."
        )
    if (twice := row.get_column("scored").item() - row.get_column("distinct").item()) > 0:
        raise OutputError(f"{cell}: {twice} pairs were scored more than once. Run the job again into a new folder.")
    return row.with_columns(
        *_sem_of_difference(pairs),
        normalizable=pl.col("gap").is_not_null(),
        expected=pl.lit(entry.n_pairs),
        failed=pl.lit(failed),
    )


def _sem_of_difference(pairs: pl.LazyFrame) -> list[pl.Series]:
    """Compute the cluster-robust standard error (see `moments`) of clean minus corrupted metric, and count units."""
    difference = pl.col("clean_metric") - pl.col("corrupted_metric")
    single = pl.when(pl.col("group").is_null()).then(pl.col("pair_id"))
    deviation = pairs.with_columns(deviation=difference - difference.mean(), single=single)
    by_unit = deviation.group_by("group", "single").agg(s=pl.col("deviation").sum(), k=pl.len())
    g = pl.len()
    sem = by_unit.select(
        sem_difference=pl.when(g > 1).then((g / (g - 1) * (pl.col("s") ** 2).sum()).sqrt() / pl.col("k").sum()),
        n_groups=g,
    )
    return sem.collect(engine="streaming").get_columns()


def _failures(store: Store, cell: Cell) -> pl.DataFrame:
    """Count the pairs that failed for each reason, with the first of them as an example."""
    first = pl.col("pair_id").arg_min()
    return (
        scan(failure_files(store, cell), Table.FAILURES)
        .group_by("stage", "error")
        .agg(
            count=pl.len(),
            example_pair_id=pl.col("pair_id").min(),
            example_message=pl.col("message").get(first),
        )
        .collect(engine="streaming")
    )
