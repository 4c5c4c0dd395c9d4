"""Means by template and task side by side, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from attrib_batch.analysis import read_summary, summarize
from attrib_batch.analysis.strata import SPREAD, stratum_spread
from attrib_batch.spec import Cell
from tests.support.synthetic_run import IoiLike, write_run

ATP = Cell("gpt2", "ioi", "atp")


def spread_of(tmp_path: Path, templates: list[str]) -> tuple[pl.DataFrame, np.ndarray]:
    """Strata of a run whose pairs have the templates, and the scores at the last position (pair, layer, head)."""
    pairs = [
        replace(pair, template=template)
        for pair, template in zip(IoiLike(layers=2, heads=3).pairs(len(templates)), templates, strict=True)
    ]
    summarize(write_run(tmp_path, {ATP: pairs}, cuts=(5,)))
    return stratum_spread(read_summary(tmp_path).strata), np.stack(
        [np.float64(np.float32(pair.scores["z"][..., -1])) for pair in pairs]
    )


def test_each_head_has_the_spread_of_its_templates(tmp_path: Path) -> None:
    templates = ["a", "b", "b", "c"] * 4 + ["d"]
    found, scores = spread_of(tmp_path, templates)
    assert found.schema == SPREAD
    rows = found.filter(kind="template", scope="last").sort("layer", "head")
    assert rows.height == 6
    for row in rows.iter_rows(named=True):
        here = scores[:, row["layer"], row["head"]]
        means = {name: here[[t == name for t in templates]].mean() for name in "abcd"}
        sums = {name: abs(here[[t == name for t in templates]].sum()) for name in "abcd"}
        strongest = max(sums, key=sums.__getitem__)
        assert (row["n_strata"], row["n_pairs"]) == (4, 17)
        assert row["mean"] == pytest.approx(here.mean(), rel=1e-9)
        assert row["share_same_sign"] == np.mean([np.sign(mean) == np.sign(here.mean()) for mean in means.values()])
        assert row["smallest_stratum"] == min(means, key=means.__getitem__)
        assert row["largest_stratum"] == max(means, key=means.__getitem__)
        assert row["smallest"] == pytest.approx(min(means.values()), rel=1e-9)
        assert row["largest"] == pytest.approx(max(means.values()), rel=1e-9)
        assert row["strongest_stratum"] == strongest
        assert row["mean_of_others"] == pytest.approx(here[[t != strongest for t in templates]].mean(), rel=1e-9)


def test_a_head_of_one_wording_has_nothing_left_in_the_others() -> None:
    head = {"model": "m", "dataset": "d", "method": "a", "kind": "template", "component": "z", "scope": "last",
            "layer": 3, "head": 1}  # fmt: skip
    means = {"one": 2.0, "two": 0.01, "three": -0.01, "four": 0.0}
    strata = pl.DataFrame([head | {"stratum": name, "mean": mean, "n_pairs": 10} for name, mean in means.items()])
    [row] = stratum_spread(strata).rows(named=True)
    assert row["mean"] == pytest.approx(0.5)
    assert row["strongest_stratum"] == "one"
    assert row["mean_of_others"] == pytest.approx(0.0, abs=1e-15)
    assert row["share_same_sign"] == 0.5


def test_one_stratum_has_no_others(tmp_path: Path) -> None:
    found, _ = spread_of(tmp_path, ["a"] * 6)
    assert found["mean_of_others"].null_count() == found.height > 0
    assert found["share_same_sign"].unique().to_list() == [1.0]


def test_a_run_without_templates_has_no_rows(tmp_path: Path) -> None:
    summarize(write_run(tmp_path, {ATP: IoiLike(layers=2, heads=2).pairs(4)}))
    assert stratum_spread(read_summary(tmp_path).strata).is_empty()
