"""A run as an object, from the files of a directory that no model wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import attrib_batch as ab
from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk
from tests.support.synthetic_run import Failure, IoiLike, Pair, write_chunk, write_manifest, write_run

ATP, NOISE = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "noise")
LAYERS, HEADS = 12, 12
PAIRS = IoiLike(without_heads=True).pairs(24)
"""Scores of z, with heads, and of mlp_out, without."""
OTHERS = [replace(pair, scores={"z": -2 * pair.scores["z"]}) for pair in PAIRS[:10]]
FAILURES = [Failure(100), Failure(101, error="boundary", message="a word goes on")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ab.Run:
    out = tmp_path_factory.mktemp("runs") / "a <b> run"
    write_manifest(out, {ATP: 26, NOISE: 10}, method={"components": ["z", "mlp_out"]})
    write_chunk(out, Chunk(ATP, 0, 11), PAIRS[:9], FAILURES)
    write_chunk(out, Chunk(ATP, 11, 26), PAIRS[9:])
    write_chunk(out, Chunk(NOISE, 0, 10), OTHERS)
    return ab.open_run(out)


def mean_at(pairs: list[Pair], position: int, component: str = "z") -> np.ndarray:
    return np.mean([pair.scores[component][..., position] for pair in pairs], axis=0)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(OutputError, match=re.escape(str(folder))):
            ab.open_run(folder)


def test_tables_are_those_of_the_cells_that_are_asked_for(run: ab.Run) -> None:
    assert run.scores().select("method", "pair_id").unique().collect().height == len(PAIRS) + len(OTHERS)
    scores = run.scores(method="noise").collect()
    assert set(scores["pair_id"]) == {pair.pair_id for pair in OTHERS}
    assert scores.height == sum(pair.scores["z"].size for pair in OTHERS)
    assert run.baselines(model="gpt2", method="atp").collect()["pair_id"].to_list() == [p.pair_id for p in PAIRS]
    failures = run.failures().collect()
    assert failures.select("method", "pair_id", "error").rows() == [
        ("atp", 100, "unequal_length"), ("atp", 101, "boundary"),
    ]  # fmt: skip
    assert run.failures(method="noise").collect().is_empty()
    assert run.heads(method="noise")["method"].unique().to_list() == ["noise"]
    assert run.positions(method="atp")["method"].unique().to_list() == ["atp"]


@pytest.mark.parametrize(
    "table", ["scores", "baselines", "failures", "heads", "positions", "top", "heatmap", "examples", "export"]
)
def test_a_misspelt_filter_is_refused_and_not_ignored(table: str, run: ab.Run) -> None:
    with pytest.raises(TypeError, match="methods"):
        getattr(run, table)(**({"layer": 0} if table == "examples" else {}), methods="atp")


def test_summaries_follow_what_is_committed(tmp_path: Path) -> None:
    write_manifest(tmp_path, {ATP: len(PAIRS)})
    write_chunk(tmp_path, Chunk(ATP, 0, 10), PAIRS[:10])
    run = ab.open_run(tmp_path)
    assert run.heads().get_column("n_pairs").max() == 10
    write_chunk(tmp_path, Chunk(ATP, 10, 24), PAIRS[10:])
    assert run.heads().get_column("n_pairs").max() == len(PAIRS)
    assert run.status().waiting == 0


def test_a_run_says_where_it_is_and_how_far(run: ab.Run) -> None:
    assert run.path.name == "a <b> run"
    assert repr(run) == (f"Run({str(run.path)!r}): 34 of 36 pairs scored; gpt2 x ioi x atp; gpt2 x ioi x noise")
    assert run.result is None, "it was only opened"
    assert not Path(run.agreement_path).exists()


def strongest(values: np.ndarray, order: np.ndarray, n: int) -> list[tuple[int, int, float]]:
    best = np.argsort(-order, axis=None, kind="stable")[:n]
    layers, heads = np.unravel_index(best, order.shape)
    return [(int(layer), int(head), float(values[layer, head])) for layer, head in zip(layers, heads, strict=True)]


@pytest.mark.parametrize("by", ["magnitude", "positive", "negative"])
@pytest.mark.parametrize(
    ("at", "scores"),
    [
        ("last", mean_at(PAIRS, -1)),
        ("end", mean_at(PAIRS, -1)),
        ("S2", mean_at(PAIRS, 9)),
        ("all", np.mean([pair.scores["z"].sum(-1) for pair in PAIRS], axis=0)),
    ],
)
def test_the_strongest_heads(at: str, scores: np.ndarray, by: str, run: ab.Run) -> None:
    found = run.top(5, at=at, by=by, method="atp")  # type: ignore[arg-type]
    order = {"magnitude": np.abs(scores), "positive": scores, "negative": -scores}[by]
    expected = strongest(scores, order, 5)
    assert [row[:2] for row in found.select("layer", "head").rows()] == [row[:2] for row in expected]
    # Scores are stored in float32.
    np.testing.assert_allclose(found["mean"], [row[2] for row in expected], rtol=1e-6)
    assert found["n_pairs"].unique().to_list() == [len(PAIRS)]


def test_every_cell_has_its_own_strongest(run: ab.Run) -> None:
    found = run.top(3)
    assert sorted(found["method"]) == ["atp"] * 3 + ["noise"] * 3
    assert found.columns == [
        "model", "dataset", "method", "component", "layer", "head", "mean", "sem", "low", "high", "mean_normalized",
        "survives", "n_pairs", "calibrated_mean", "calibrated_low", "calibrated_high", "measured_pairs",
        "effective_pairs",
    ]  # fmt: skip
    heads = run.heads().filter(scope="last", component="z")
    for row in found.iter_rows(named=True):
        [same] = heads.filter(**{name: row[name] for name in ("method", "layer", "head")}).rows(named=True)
        assert {name: same[name] for name in row} == row
        assert row["low"] < row["mean"] < row["high"]
        assert row["survives"] == (same["q_bh"] < 0.05)
    assert heads["survives"].n_unique() == 2  # or the column would say nothing
    for row in found.iter_rows(named=True):
        pairs = PAIRS if row["method"] == "atp" else OTHERS
        gap = np.mean([pair.clean for pair in pairs]) - np.mean([pair.corrupted for pair in pairs])
        assert row["mean_normalized"] == pytest.approx(row["mean"] / gap)


def test_a_component_without_heads(run: ab.Run) -> None:
    [first, *_] = run.top(at="S2", component="mlp_out").rows(named=True)
    assert (first["layer"], first["head"]) == (0, None)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"at": "IO2"}, r"at='IO2': choose last, all, or a role: IO, S1, S2, end"),
        ({"component": "q"}, "no score of q is there; components: z, mlp_out"),
        ({"by": "size"}, "by='size': choose one of magnitude, positive, negative"),
        ({"method": "ig"}, "no score of z is there"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(asked: dict[str, str], says: str, run: ab.Run) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        run.top(**asked)  # type: ignore[arg-type]


def as_matrix(rows: pl.DataFrame, column: str, value: str) -> np.ndarray:
    return rows.pivot(column, index="layer", values=value).sort("layer").drop("layer").to_numpy()


@pytest.mark.parametrize(("normalized", "value"), [(True, "mean_normalized"), (False, "mean")])
@pytest.mark.parametrize("at", ["last", "all", "S2"])
def test_a_heatmap_shows_the_numbers_of_the_summary(normalized: bool, value: str, at: str, run: ab.Run) -> None:
    figure = run.heatmap("z", at, normalized=normalized, method="atp")
    rows = run.heads(method="atp").filter(component="z")
    rows = rows.filter(scope=at) if at != "S2" else rows.filter(role=at)
    [trace] = figure.data
    drawn = np.asarray(trace.z, dtype=float)
    assert drawn.shape == (LAYERS, HEADS)
    # The figure keeps fewer digits than the table.
    np.testing.assert_allclose(drawn, as_matrix(rows.sort("layer", "head"), "head", value), rtol=1e-3, atol=1e-6)
    assert list(trace.x) == list(range(HEADS))
    assert list(trace.y) == list(range(LAYERS))
    assert "z, " in figure.layout.title.text


def test_a_heatmap_by_position(run: ab.Run) -> None:
    figure = run.heatmap("mlp_out", "position", method="atp", normalized=False)
    [trace] = figure.data
    rows = run.positions(method="atp").filter(component="mlp_out", scope="position").sort("layer", "position")
    np.testing.assert_allclose(np.asarray(trace.z, dtype=float), as_matrix(rows, "position", "mean"), rtol=1e-3,
                               atol=1e-6)  # fmt: skip
    assert list(trace.x) == list(range(16))


def test_a_heatmap_of_a_component_without_heads_has_one_column(run: ab.Run) -> None:
    [trace] = run.heatmap("mlp_out", "S2", method="atp", normalized=False).data
    assert list(trace.x) == ["S2"]
    np.testing.assert_allclose(
        np.asarray(trace.z, dtype=float)[:, 0], mean_at(PAIRS, 9, "mlp_out"), rtol=1e-3, atol=1e-6
    )


def test_where_clean_and_corrupted_are_alike_raw_scores_are_drawn(tmp_path: Path) -> None:
    pairs = [replace(pair, clean=1.0, corrupted=1.0) for pair in IoiLike(layers=2, heads=2).pairs(4)]
    run = ab.open_run(write_run(tmp_path, {ATP: pairs}))
    [trace] = run.heatmap().data
    np.testing.assert_allclose(np.asarray(trace.z, dtype=float), mean_at(pairs, -1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "several cells: choose one with model=, dataset=, method=; gpt2 x ioi x atp; gpt2 x ioi x noise"),
        ({"at": "position"}, "several cells"),
        ({"component": "k", "at": "position"}, "no score of k is there; components: z, mlp_out"),
        ({"at": "nowhere"}, "choose last, all, or a role"),
    ],
)
def test_a_heatmap_is_of_one_cell_that_is_there(asked: dict[str, str], says: str, run: ab.Run) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        run.heatmap(**asked)  # type: ignore[arg-type]


def test_the_pairs_that_make_a_head(run: ab.Run) -> None:
    found = run.examples(9, 9, at="last", n=2, method="atp")
    ranked = sorted(PAIRS, key=lambda pair: -pair.scores["z"][9, 9, -1])
    assert found["pair_id"].to_list() == [ranked[index].pair_id for index in (0, 1, -1, -2)]
    assert found["which"].to_list() == ["strongest"] * 2 + ["weakest"] * 2
    with pytest.raises(ValueError, match="no score of z, L12H0"):
        run.examples(12, 0)


def test_the_two_cells_of_a_run_are_compared(run: ab.Run) -> None:
    """The pairs that both scored are the first ten, and one cell has -2 times the other's scores."""
    found = run.compare(normalized=False).filter(component="z", scope="last").sort("layer", "head")
    assert found["paired"].all()
    assert found["n_pairs_a"].unique().to_list() == [10]
    np.testing.assert_allclose(found["difference"], 3 * mean_at(PAIRS[:10], -1).ravel(), rtol=1e-5, atol=1e-7)
    assert run.compare(a={"method": "atp"}, b={"method": "noise"}, normalized=False).height == run.compare().height


def test_a_run_is_compared_with_another(run: ab.Run, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", {ATP: [replace(pair, scores={"z": pair.scores["z"] / 2}) for pair in PAIRS]})
    rows = run.compare(str(other), normalized=False).filter(scope="last")
    assert rows.select("method_a", "method_b").unique().rows() == [("atp", "atp")]
    np.testing.assert_allclose(rows["difference"], mean_at(PAIRS, -1).ravel() / 2, rtol=1e-5, atol=1e-7)
    renamed = write_run(tmp_path / "renamed", {Cell("gpt2", "ioi", "third"): PAIRS})
    with pytest.raises(ValueError, match="the runs have no cell of the same names: choose with a and b; gpt2 x ioi x"):
        run.compare(renamed)
    assert ab.open_run(other).compare(renamed)["difference"].abs().max() > 0
    three = write_run(tmp_path / "three", {Cell("gpt2", "ioi", name): PAIRS[:4] for name in ("x", "y", "w")})
    with pytest.raises(ValueError, match="name two cells with a and b; there are: gpt2 x ioi x x"):
        ab.open_run(three).compare()


def test_a_run_is_exported(run: ab.Run, tmp_path: Path) -> None:
    done = run.export(tmp_path, formats=["csv", "mib"], n=3, at="last", component="z", method="atp")
    assert {Path(path).relative_to(tmp_path).as_posix() for path in done.files} == {
        "top.csv", "mib/atp_patching_node/ioi_gpt2/importances.json",
    }  # fmt: skip
    top = pl.read_csv(tmp_path / "top.csv")
    assert top.select("layer", "head").rows() == run.top(3, method="atp").select("layer", "head").rows()


def test_a_notebook_shows_counts_heads_and_a_map_and_loads_nothing(run: ab.Run) -> None:
    shown = run._repr_html_()
    assert "gpt2 x ioi x atp</b>: 24 of 26 pairs scored, 2 failed" in shown
    assert "gpt2 x ioi x noise</b>: 10 of 10 pairs scored" in shown
    for row in run.top(5, method="atp").iter_rows(named=True):
        assert f"<td>L{row['layer']}H{row['head']}</td>" in shown
    assert shown.count("<rect ") == LAYERS * HEADS
    assert not re.search(r"<script|https?:|src=|href=|url\(|@import|<link|<iframe|\bon\w+=", shown)
    assert "a &lt;b&gt; run" in shown, "names are text, not markup"


@pytest.mark.parametrize(("components", "shown"), [("qz", "z"), ("kq", "q")])
def test_a_notebook_shows_z_or_else_the_first_component_with_heads(components: str, shown: str, tmp_path: Path) -> None:
    pairs = [Pair(0, {"attn_out": np.ones((2, 4)), **dict.fromkeys(components, np.ones((2, 3, 4)))})]
    assert f"<th>{shown}, last position</th>" in ab.open_run(write_run(tmp_path, {ATP: pairs}))._repr_html_()


def test_a_notebook_shows_counts_alone_where_no_component_has_heads(tmp_path: Path) -> None:
    shown = ab.open_run(write_run(tmp_path, {ATP: [Pair(0, {"mlp_out": np.ones((2, 4))})]}))._repr_html_()
    assert "1 of 1 pairs scored" in shown
    assert "<table" not in shown


def test_a_notebook_shows_a_run_of_which_nothing_is_scored(tmp_path: Path) -> None:
    write_manifest(tmp_path, {ATP: 8})
    shown = ab.open_run(tmp_path)._repr_html_()
    assert "0 of 8 pairs scored" in shown
    assert "<svg" not in shown


def test_a_notebook_shows_a_run_whose_scores_are_all_zero(tmp_path: Path) -> None:
    pairs = [Pair(number, {"z": np.zeros((2, 3, 4))}) for number in range(3)]
    shown = ab.open_run(write_run(tmp_path, {ATP: pairs}))._repr_html_()
    assert shown.count("<rect ") == 6


def test_a_report_is_written_into_the_directory(run: ab.Run) -> None:
    path = run.report()
    assert Path(path) == Path(run.path) / "report.html"
    assert "L9H9" in Path(path).read_text(encoding="utf-8")
