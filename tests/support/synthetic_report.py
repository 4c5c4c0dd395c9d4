"""Frames that other parts of the package give a report, made from synthetic pairs in the columns they have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.report.sections.ranking import at_best

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.analysis import Summary
    from attrib_batch.spec import Cell
    from tests.support.synthetic_run import Pair

NAMES = (" Mary", " John", " Anna", " Tom")


def ioi_tokens(pair: Pair) -> tuple[list[str], list[str]]:
    """The clean and the corrupted prompt of an `IoiLike` pair, as tokens."""
    io, s = NAMES[pair.pair_id % 4], NAMES[(pair.pair_id + 1) % 4]
    clean = ["When", " the", io, " and", s, " went", " to", " the", " store,", s, " gave", " a", " drink"]
    clean += [" kindly"] * (pair.n_tokens - 14) + [" to"]
    return clean, [io if position == 9 else token for position, token in enumerate(clean)]


def examples_frame(
    cells: Mapping[Cell, Sequence[Pair]],
    summary: Summary,
    *,
    n_heads: int = 12,
    n: int = 3,
    tokens: Mapping[int, Sequence[str]] | None = None,
    prompts: bool = True,
) -> pl.DataFrame:
    """The strongest and weakest pairs of the strongest heads of ``z`` of each cell; by default with tokens of IOI."""
    rows = []
    for cell, pairs in cells.items():
        own = summary.heads.filter(model=cell.model, dataset=cell.dataset, method=cell.method, component="z")
        ranked, _ = at_best(own)
        at = ranked.get_column("role")[0] or ranked.get_column("scope")[0]
        for layer, head in (
            ranked.sort(pl.col("mean").abs(), descending=True).head(n_heads).select("layer", "head").rows()
        ):
            ordered = sorted(pairs, key=lambda pair: -pair.scores["z"][layer, head, -1])
            for which, chosen in (("strongest", ordered[:n]), ("weakest", ordered[: n - 1 : -1][:n])):
                for rank, pair in enumerate(chosen, start=1):
                    clean, corrupted = ioi_tokens(pair) if tokens is None else (list(tokens[pair.pair_id]),) * 2
                    rows.append(
                        {
                            "model": cell.model, "dataset": cell.dataset, "method": cell.method, "component": "z",
                            "layer": layer, "head": head, "at": at, "which": which, "rank": rank,
                            "pair_id": pair.pair_id, "value": float(pair.scores["z"][layer, head, -1]),
                            "clean_metric": pair.clean, "corrupted_metric": pair.corrupted, "template": pair.template,
                            "task": None, "tokens": clean if prompts else None,
                            "corrupted_tokens": corrupted if prompts else None,
                            "scores": pair.scores["z"][layer, head].tolist(),
                        }
                    )  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"layer": pl.Int16, "head": pl.Int16, "task": pl.String})


def stability_frame(cells: Sequence[Cell], component: str = "z") -> pl.DataFrame:
    """Agreement that rises with the number of pairs."""
    rows = [
        {
            "model": cell.model, "dataset": cell.dataset, "method": cell.method, "component": component,
            "scope": "last", "n_pairs": n, "top_k": 10, "overlap": overlap, "overlap_low": overlap - 0.08,
            "overlap_high": min(overlap + 0.07, 1.0), "spearman": overlap - 0.02,
        }
        for cell in cells
        for n, overlap in ((16, 0.6), (32, 0.72), (64, 0.81), (128, 0.91), (256, 0.95), (500, 0.97))
    ]  # fmt: skip
    return pl.DataFrame(rows)


def with_tests(summary: Summary) -> Summary:
    """The summary with the columns of intervals and of tests."""

    def added(frame: pl.DataFrame) -> pl.DataFrame:
        p = np.where(frame.get_column("mean").abs() > 0.05, 1e-6, 0.4)
        return frame.with_columns(
            low=pl.col("mean") - 2 * pl.col("sem"),
            high=pl.col("mean") + 2 * pl.col("sem"),
            low_normalized=pl.col("mean_normalized") - 2 * pl.col("sem_normalized"),
            high_normalized=pl.col("mean_normalized") + 2 * pl.col("sem_normalized"),
            p_value=pl.Series(p),
            q_bh=pl.Series(2 * p),
            q_by=pl.Series(np.minimum(5 * p, 1)),
            survives=pl.Series(2 * p < 0.05),
        )

    return replace(summary, heads=added(summary.heads), positions=added(summary.positions))
