from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from scipy import stats

from attrib_batch.analysis import (
    half_width,
    heatmap,
    normalized,
    read_manifest,
    read_summary,
    scan_baselines,
    scan_failures,
    scan_scores,
    summarize,
    summary_is_current,
)
from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk, Table
from tests.support.jobs import ROOT
from tests.support.synthetic_run import Failure, Pair, write_run

if TYPE_CHECKING:
    from pathlib import Path

ATP, NOISE = Cell("2024", "ioi", "atp"), Cell("gpt2", "ioi", "noise")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    atp = [Pair(i, {"z": rng.normal(size=(2, 4, 3))}, clean=2.0 + i, corrupted=0.0) for i in range(4)]
    noise = [Pair(i, {"z": rng.normal(size=(2, 4, 3)), "mlp_out": np.ones((2, 3))}) for i in range(2)]
    # A folder above the run that looks like a partition must not become a column.
    root = tmp_path / "model=elsewhere"
    return write_run(root, {ATP: atp, NOISE: noise}, cuts=(1,), failures={ATP: [Failure(77)]})


def test_scans_carry_the_names_of_the_cell_as_strings(out: Path) -> None:
    scores = scan_scores(out)
    assert scores.collect_schema().names() == ["model", "dataset", "method", *Table.SCORES.schema.names]
    counts = dict(scores.group_by("model").len().collect().rows())
    assert counts == {"2024": 4 * 24, "gpt2": 2 * 24 + 2 * 6}
    assert scan_baselines(out, model="2024").select(pl.len()).collect().item() == 4
    assert scan_failures(out).select("model", "pair_id").collect().rows() == [("2024", 77)]
    assert scan_failures(out, method="noise").collect().is_empty()


def test_a_run_without_failures_has_an_empty_table_of_them(tmp_path: Path) -> None:
    out = write_run(tmp_path, {ATP: [Pair(0, {"z": np.ones((1, 1, 1))})]})
    assert not (out / Table.FAILURES).exists()
    failures = scan_failures(out).collect()
    assert failures.is_empty()
    assert failures.columns == ["model", "dataset", "method", *Table.FAILURES.schema.names]


def test_what_the_documentation_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [
        block.partition("```")[0]
        for block in (ROOT / "docs/pages/how-to/results.md").read_text(encoding="utf-8").split("```python\n")[1:]
        if "scan_parquet" in block.partition("```")[0]
    ]
    cell = Cell("gpt2", "ioi", "atp")
    summarize(write_run(tmp_path / "runs/mine", {cell: [Pair(i, {"z": np.ones((2, 3, 4))}) for i in range(3)]}))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(code, scope)  # noqa: S102 - the page's
    lines = [line.partition("#")[0] for line in code.splitlines() if line.startswith("pl.scan_parquet")]
    [frame] = [eval(line, scope) for line in lines]  # noqa: S307 - likewise
    rows = frame.collect()
    assert rows.select("model", "dataset", "method").unique().rows() == [("gpt2", "ioi", "atp")]
    assert rows.height == 3 * 24


def test_an_unknown_cell_is_named_with_those_that_exist(out: Path) -> None:
    with pytest.raises(OutputError, match=r"no cell with model='gpt3'; it has: 2024 x ioi x atp; gpt2 x ioi x noise"):
        scan_scores(out, model="gpt3")


def test_normalized_divides_by_the_gap_of_the_own_cell(out: Path) -> None:
    rows = normalized(scan_scores(out), scan_baselines(out)).collect()
    for model, gap in (("2024", 3.5), ("gpt2", 4.0)):
        own = rows.filter(pl.col("model") == model)
        by_hand = own.get_column("score").to_numpy().astype(float) / gap
        np.testing.assert_allclose(own.get_column("normalized").to_numpy(), by_hand, rtol=1e-15)


def test_heatmaps_are_the_tutorials_two_maps(out: Path) -> None:
    summarize(out)
    summary = read_summary(out)
    dense = scan_scores(out, model="2024").collect().get_column("score").to_numpy().astype(float)
    dense = dense.reshape(4, 2, 4, 3)  # pair layer head position
    heads = heatmap(summary.heads, model="2024", component="z", scope="last")
    np.testing.assert_allclose(heads, dense[..., -1].mean(0) / 3.5, rtol=1e-12)
    positions = heatmap(summary.positions, columns="position", model="2024", component="z")
    np.testing.assert_allclose(positions, dense.sum(2).mean(0) / 3.5, rtol=1e-12)


def test_a_heatmap_refuses_what_is_not_one_map(out: Path) -> None:
    summarize(out)
    heads = read_summary(out).heads
    with pytest.raises(ValueError, match="select one model and one method"):
        heatmap(heads, component="z", scope="last")
    with pytest.raises(ValueError, match="no row with a head"):
        heatmap(heads, component="mlp_out")


def test_a_summary_is_stale_when_a_part_is_newer(out: Path) -> None:
    assert not summary_is_current(out)
    paths = summarize(out)
    newest = max(path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file())
    for path in paths:
        os.utime(path, ns=(newest + 10, newest + 10))
    assert summary_is_current(out)
    part = out / Chunk(NOISE, 1, 2).path(Table.SCORES)
    os.utime(part, ns=(newest + 11, newest + 11))
    assert not summary_is_current(out)


def test_a_missing_summary_says_how_to_make_it(out: Path) -> None:
    with pytest.raises(OutputError, match="run attrib-batch summarize"):
        read_summary(out)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a run's manifest"), ("{}", "schema_version, stages missing"), ('{"schema_version": 99}', "stages")],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_of_another_layout_is_refused(out: Path) -> None:
    path = out / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(OutputError, match="schema version 99"):
        read_manifest(out)


def test_half_width_is_the_t_interval() -> None:
    widths = half_width(np.array([1.0, 2.0]), np.array([2, 31]))
    np.testing.assert_allclose(widths, [12.706204736, 2 * stats.t.ppf(0.975, 30)])
    assert np.isnan(half_width(np.array([1.0]), np.array([1]))).all()
