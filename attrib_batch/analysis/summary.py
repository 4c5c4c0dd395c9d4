"""The summary tables: what they hold, where they are, and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.verification.calibrated import CALIBRATED
from attrib_batch.errors import OutputError
from attrib_batch.storage.store import Store
from attrib_batch.tables import MANIFEST, VERIFICATION, Scope, Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDER = "summary"
_TABLES = ("heads", "positions", "strata", "stability", "baselines", "failures")

_CELL = {"model": pl.String(), "dataset": pl.String(), "method": pl.String()}

_MEANS = {
    "n_pairs": pl.Int64(),  # pairs the statistics are over
    "n_groups": pl.Int64(),  # sampling units among them: groups, and pairs without a group
    "mean": pl.Float64(),  # metric units, as are sem, std, min and max
    "sem": pl.Float64(),  # cluster-robust standard error of the mean; null for one unit
    "share_positive": pl.Float64(),  # share of pairs with a value above 0, 0 to 1
    "low": pl.Float64(),  # 95 % interval of the mean, low to high, metric units; null for one unit
    "high": pl.Float64(),
}
_STATISTICS = {
    **_MEANS,
    "std": pl.Float64(),  # over pairs, ddof 1; null for one pair
    "min": pl.Float64(),
    "max": pl.Float64(),
    "min_pair": pl.Int64(),  # the pair_id that has it; the smallest of several
    "max_pair": pl.Int64(),
    "mean_normalized": pl.Float64(),  # mean / (mean clean - mean corrupted); null where that is about 0
    "std_normalized": pl.Float64(),
    "sem_normalized": pl.Float64(),  # by the delta method: the gap is uncertain as well
    "low_normalized": pl.Float64(),  # 95 % interval of mean_normalized
    "high_normalized": pl.Float64(),
    "p_value": pl.Float64(),  # two-sided, against a mean of 0; null for one unit, values all 0, and magnitudes
    "q_bh": pl.Float64(),  # adjusted within (cell, component, scope, role): Benjamini-Hochberg
    "q_by": pl.Float64(),  # likewise Benjamini-Yekutieli, which holds under any dependence
    "survives": pl.Boolean(),  # q_bh below 0.05; null where p_value is
}

HEADS = pl.Schema(
    {
        **_CELL,
        "component": pl.String(),
        "scope": pl.String(),  # role: sum over a role's span; last: last position; all: sum over positions
        "role": pl.String(),  # the role's name where scope is role, otherwise null
        "layer": pl.Int16(),
        "head": pl.Int16(),  # null for components without heads
        **_STATISTICS,
        **CALIBRATED,  # null where the exact effects of a random sample are not known
    }
)
"""``heads.parquet``: one row per (cell, component, scope, role, layer, head).

A pair's value in scope ``role`` is the sum over the positions of the role's span; pairs without the role do
not count.
"""

POSITIONS = pl.Schema(
    {
        **_CELL,
        "component": pl.String(),
        "scope": pl.String(),  # position: counted from the first token, 0; from_end: back from the last, -1
        "layer": pl.Int16(),
        "position": pl.Int32(),
        **_STATISTICS,
    }
)
"""``positions.parquet``: one row per (cell, component, scope, layer, position).

A pair's value is the sum over heads; pairs too short to have the position do not count.
"""

STRATA = pl.Schema(
    {
        **_CELL,
        "kind": pl.String(),  # template or task
        "stratum": pl.String(),  # its name
        "component": pl.String(),
        "scope": pl.String(),  # last or all, as in heads
        "layer": pl.Int16(),
        "head": pl.Int16(),
        **_MEANS,
    }
)
"""``strata.parquet``: one row per (cell, kind, stratum, component, scope, layer, head).

The statistics are over the pairs of one template, or of one task; intervals are Student's t, whatever their number.
Chunks that an earlier release committed have no tasks.
"""

STABILITY = pl.Schema(
    {
        **_CELL,
        "component": pl.String(),
        "scope": pl.String(),  # last or all, as in heads
        "n_pairs": pl.Int64(),  # pairs of each of two disjoint random sets
        "top_k": pl.Int64(),  # how many heads, strongest by magnitude, are compared
        "overlap": pl.Float64(),  # share of one set's top k that is in the other's, 0 to 1; mean over splits
        "overlap_low": pl.Float64(),  # 95 % of the splits lie between
        "overlap_high": pl.Float64(),
        "spearman": pl.Float64(),  # rank correlation of all heads' means, -1 to 1; mean over splits
    }
)
"""``stability.parquet``: one row per (cell, component, scope, n_pairs, top_k); none for a cell of one chunk."""

BASELINES = pl.Schema(
    {
        **_CELL,
        "expected": pl.Int64(),  # pairs in the plan
        "scored": pl.Int64(),  # pairs with scores; all statistics below are over these
        "failed": pl.Int64(),  # pairs in the failures table
        "mean_clean": pl.Float64(),  # metric units, as all of the following up to share_clean_higher
        "std_clean": pl.Float64(),
        "mean_corrupted": pl.Float64(),
        "std_corrupted": pl.Float64(),
        "mean_difference": pl.Float64(),  # clean minus corrupted: what normalised scores are divided by
        "sem_difference": pl.Float64(),  # its cluster-robust standard error
        "normalizable": pl.Boolean(),  # whether the difference is far enough from 0 to divide by
        "share_clean_higher": pl.Float64(),  # share of pairs with clean above corrupted, 0 to 1
        "n_tokens_min": pl.Int64(),
        "n_tokens_max": pl.Int64(),
    }
)
"""``baselines.parquet``: one row per cell."""

FAILURES = pl.Schema(
    {
        **_CELL,
        "stage": pl.String(),
        "error": pl.String(),
        "count": pl.Int64(),  # pairs
        "example_pair_id": pl.Int64(),  # the smallest pair_id among them
        "example_message": pl.String(),
    }
)
"""``failures.parquet``: one row per (cell, stage, error)."""


@dataclass(frozen=True)
class SummaryPaths:
    """Where the summary tables of a run are."""

    heads: Path | str
    positions: Path | str
    strata: Path | str
    stability: Path | str
    baselines: Path | str
    failures: Path | str

    @classmethod
    def of(cls, out: str | Path | Store) -> SummaryPaths:
        """Return the paths in a run's directory, or URLs in an object store, whether or not the files exist."""
        store = Store.parse(out)
        return cls(*(store.path(_relative(name)) for name in _TABLES))

    def __iter__(self) -> Iterator[Path | str]:
        return iter(getattr(self, name) for name in _TABLES)


@dataclass(frozen=True)
class Summary:
    """The summary tables of a run; their columns are those of the schemas of the same names."""

    heads: pl.DataFrame
    positions: pl.DataFrame
    strata: pl.DataFrame
    stability: pl.DataFrame
    baselines: pl.DataFrame
    failures: pl.DataFrame


def write_summary(
    store: Store,
    *,
    heads: pl.DataFrame,
    positions: pl.DataFrame,
    strata: pl.DataFrame,
    stability: pl.DataFrame,
    baselines: pl.DataFrame,
    failures: pl.DataFrame,
) -> SummaryPaths:
    """Commit the tables, each in one step."""
    frames = {
        "heads": heads,
        "positions": positions,
        "strata": strata,
        "stability": stability,
        "baselines": baselines,
        "failures": failures,
    }
    for name, frame in frames.items():
        store.write_table(_relative(name), frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
    return SummaryPaths.of(store)


def read_summary(out: str | Path | Store) -> Summary:
    """Read the summary tables of a run.

    Raises:
        OutputError: the run has not been summarised.
    """
    store = Store.parse(out)
    absent = [f"{name}.parquet" for name in _TABLES if not store.exists(_relative(name))]
    if absent:
        raise OutputError(
            f"{store.root} has no summary ({', '.join(absent)} missing): run attrib-batch summarize {store.root} first."
        )
    tables = {name: pl.read_parquet(store.read_bytes(_relative(name))) for name in _TABLES}
    # An earlier release calibrated no means.
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in CALIBRATED.items() if name not in tables["heads"]]
    return Summary(**{**tables, "heads": tables["heads"].with_columns(missing)})


def read_stability(out: str | Path | Store) -> pl.DataFrame:
    """Read how far the strongest heads of disjoint sets of pairs agree; the columns are those of `STABILITY`.

    Raises:
        OutputError: the run has not been summarised.
    """
    return read_summary(out).stability


def summary_is_current(out: str | Path | Store) -> bool:
    """Return whether the summary is there and newer than the manifest and every part of the run, exact scores too."""
    store = Store.parse(out)
    summaries = {file.relative: file.modified_ns for file in store.list(_FOLDER)}
    if not all(_relative(name) in summaries for name in _TABLES):
        return False
    written = min(summaries[_relative(name)] for name in _TABLES)
    manifest = (file for file in store.list("") if file.relative == MANIFEST)
    folders = (*Table, f"{VERIFICATION}/{Table.SCORES}")
    sources = chain(manifest, *(store.list(folder, recursive=True) for folder in folders))
    return all(source.modified_ns < written for source in sources)


def heatmap(
    summary: pl.DataFrame, *, columns: str = "head", value: str = "mean_normalized", **select: str | int
) -> np.ndarray:
    """Arrange one statistic as a matrix of layers by heads or by positions.

    The tutorial's two maps are ``heatmap(heads, component="z", scope="last")`` and ``heatmap(positions,
    columns="position", component="z")``; with ``scope="from_end"`` the last column is the last position of all prompts.

    Args:
        summary: ``heads`` or ``positions`` of a `Summary`.
        columns: ``head`` or ``position``.
        value: the statistic; ``*_normalized`` has no unit, the others are in metric units.
        **select: values that other columns must have, such as ``model="gpt2"`` or ``role="IO"``.

    Returns:
        Float64 of shape (layer, head) or (layer, position), both counted from 0; NaN where there is no
        number.

    Raises:
        ValueError: the selection is empty, or several rows fall on one element of the matrix.
    """
    if columns == "position":
        select.setdefault("scope", Scope.POSITION)
    chosen = summary.filter(*(pl.col(name) == wanted for name, wanted in select.items())).drop_nulls(columns)
    if chosen.is_empty():
        raise ValueError(f"no row with a {columns} has {select}")
    if chosen.select("layer", columns).is_duplicated().any():
        several = [
            name
            for name in (*_CELL, "component", "scope", "role")
            if name in chosen.columns and chosen.get_column(name).n_unique() > 1
        ]
        raise ValueError(f"several rows per layer and {columns}: select one {' and one '.join(several)}")
    rows, cols = chosen.get_column("layer").to_numpy(), chosen.get_column(columns).to_numpy()
    cols = cols - min(cols.min(), 0)
    matrix = np.full((rows.max() + 1, cols.max() + 1), np.nan)
    matrix[rows, cols] = chosen.get_column(value).cast(pl.Float64).to_numpy()
    return matrix


def _relative(name: str) -> str:
    return f"{_FOLDER}/{name}.parquet"
