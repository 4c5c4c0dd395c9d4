"""Tables of two runs over the same pairs: the same rows, and the same numbers but for rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from tests.support.jobs import SCORE_KEYS, read_scores, read_table
from tests.support.near import assert_near, estimated_terms

if TYPE_CHECKING:
    from pathlib import Path

CELL = ["model", "dataset", "method"]
METRICS = ["clean_metric", "corrupted_metric"]


@dataclass(frozen=True)
class Tables:
    """The scores and baselines of a run."""

    scores: pl.DataFrame
    baselines: pl.DataFrame

    @classmethod
    def read(cls, out: Path, *, model: str | None = None, without: set[int] | None = None) -> Tables:
        """Read them, of one model without its name if there is one given, and without the rows of some pairs."""
        tables = read_scores(out), read_table(out, "baselines")
        if model is not None:
            tables = tuple(table.filter(model=model).with_columns(model=pl.lit("-")) for table in tables)
        kept = ~pl.col("pair_id").is_in(sorted(without or ()))
        scores, baselines = (table.filter(kept) for table in tables)
        return cls(scores.sort(SCORE_KEYS), baselines.sort(*CELL, "pair_id"))


def assert_same_numbers(ours: Tables, theirs: Tables) -> None:
    """Raise AssertionError unless the tables have the same rows, and scores and metrics differ by rounding alone.

    The terms of a pair's scores are estimated from its largest score and the largest metric of its method's pairs: one
    pair's metrics may be small by chance.
    """
    assert theirs.scores.height
    assert_frame_equal(ours.scores.drop("score"), theirs.scores.drop("score"))
    assert_frame_equal(ours.baselines.drop(METRICS), theirs.baselines.drop(METRICS))
    terms = _terms(theirs)
    for table, column in (("scores", "score"), *(("baselines", metric) for metric in METRICS)):
        mine, others = getattr(ours, table), getattr(theirs, table)
        of_rows = others.join(terms, on=[*CELL, "pair_id"], how="left", maintain_order="left")
        assert_near(mine[column], others[column], of_rows["terms"].to_numpy(), what=f"{column} of {table}")


def _terms(tables: Tables) -> pl.DataFrame:
    """The terms of every pair, by model, dataset, method and pair."""
    scores = tables.scores.group_by(*CELL, "pair_id").agg(score=pl.col("score").abs().max())
    largest = pl.max_horizontal(pl.col(METRICS).abs(), (pl.col(METRICS[0]) - pl.col(METRICS[1])).abs())
    metrics = tables.baselines.select(*CELL, "pair_id", metric=largest.max().over(CELL))
    both = metrics.join(scores, on=[*CELL, "pair_id"], how="full", coalesce=True, validate="1:1")
    assert both.null_count().sum_horizontal().item() == 0, "a pair has scores and no metrics, or the other way"
    terms = [estimated_terms(np.array(row)) for row in both.select("score", "metric").iter_rows()]
    return both.select(*CELL, "pair_id", terms=pl.Series(terms))
