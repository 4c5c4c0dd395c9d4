from __future__ import annotations

import base64
import html
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import yaml

from attrib_batch.analysis import heatmap, read_summary
from attrib_batch.errors import RequestError
from attrib_batch.report import write_report
from attrib_batch.report.formats import plain, signed
from attrib_batch.report.page import read_material, render
from attrib_batch.spec import Cell
from attrib_batch.spec.job_file import parse_spec
from attrib_batch.storage.store import Store
from tests.support.synthetic_report import stability_frame
from tests.support.synthetic_run import Failure, IoiLike, Pair, write_manifest, write_run

if TYPE_CHECKING:
    from pathlib import Path

CELL, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "second")
HOSTILE = "</script><script>alert(1)</script><b>role</b>"


def visible(page: str) -> str:
    """The page without plotly.js, styles, scripts and tags, its white space joined."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def figures(page: str) -> list[str]:
    return re.findall(r'<div id="([^"]+)" class="chart"', page)


def data(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def drawn_matrix(page: str, div_id: str, name: str = "value") -> np.ndarray:
    """The numbers a map draws, decoded from the page."""
    spec = data(page)["figures"][div_id]
    return np.frombuffer(base64.b64decode(spec[name]), dtype="<f4").reshape(len(spec["y"]), len(spec["x"]))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    failures = [Failure(999), Failure(998), Failure(997, error="too_long", message="<i>long</i> & more")]
    both, one = IoiLike(layers=4, heads=3, without_heads=True), IoiLike(layers=4, heads=3, seed=1)
    cells = {CELL: both.pairs(21), OTHER: one.pairs(8)}
    return write_run(tmp_path_factory.mktemp("run"), cells, cuts=(7,), failures={CELL: failures})


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    path = write_report(out)
    assert path == out / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_holds_plotly_once_and_stays_small(page: str) -> None:
    assert page.count("plotly.js v") == 1
    assert len(page.encode()) < 6_000_000
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=(?![\"']?(data:|#))", page)


def test_every_map_of_every_component_is_drawn_once(page: str) -> None:
    ids = figures(page)
    assert len(ids) == len(set(ids))
    assert set(data(page)["figures"]) == set(ids)
    z = {
        f"cell-{cell}-z-{name}"
        for cell in (0, 1)
        for name in ("answer", "roles", "position", "role-0", "role-1", "all")
    }
    across = {"sweep-z-0", "sweep-z-1", "difference-z-1-0"}
    maps = {name for name in ids if not name.endswith("-stability")}
    assert maps == z | across | {"cell-0-mlp_out-position", "cell-0-mlp_out-roles"}


def test_the_maps_draw_the_summary(page: str, out: Path) -> None:
    summary, of_cell = read_summary(out), {"method": "atp", "component": "z"}
    end = heatmap(summary.heads, scope="role", role="end", **of_cell)
    for name in ("answer", "role-1"):
        np.testing.assert_allclose(drawn_matrix(page, f"cell-0-z-{name}"), end, rtol=1e-6)
    positions = heatmap(summary.positions, columns="position", scope="from_end", **of_cell)
    np.testing.assert_allclose(drawn_matrix(page, "cell-0-z-position"), positions[:, -7:], rtol=1e-6)


def test_layers_by_role_add_heads_up(page: str, out: Path) -> None:
    heads = read_summary(out).heads
    for column, role in enumerate(("S2", "end")):
        of_role = heatmap(heads, scope="role", role=role, method="atp", component="z")
        np.testing.assert_allclose(drawn_matrix(page, "cell-0-z-roles")[:, column], of_role.sum(axis=1), rtol=1e-5)
    assert "low" not in data(page)["figures"]["cell-0-z-roles"]
    assert "over heads, so without intervals" in visible(page)


def test_every_cell_of_a_map_has_an_interval_and_its_n(page: str) -> None:
    spec = data(page)["figures"]["cell-0-z-position"]
    assert spec["x"] == list(range(-7, 0))
    assert spec["n"] == 21
    value, low, high = (drawn_matrix(page, "cell-0-z-position", name) for name in ("value", "low", "high"))
    assert np.all((low <= value) & (value <= high))
    mlp = data(page)["figures"]["cell-0-mlp_out-position"]
    assert dict(zip(mlp["x"], mlp["n"], strict=True)) == {-16: 6, -15: 13, **dict.fromkeys(range(-14, 0), 21)}


def test_what_is_zero_by_construction_is_said_and_not_drawn(page: str) -> None:
    text = visible(page)
    assert "clean and corrupted prompt differ: IO , S1 ." in text
    assert "Positions \N{MINUS SIGN}16 to \N{MINUS SIGN}8 are not drawn: every score there is exactly 0" in text


def test_maps_of_heads_share_one_colour_scale(page: str) -> None:
    specs = data(page)["figures"]
    limits = {specs[f"cell-0-z-{name}"]["limit"] for name in ("answer", "role-0", "role-1", "all")}
    assert len(limits) == 1
    assert specs["sweep-z-0"]["limit"] == specs["sweep-z-1"]["limit"]


def test_curves_of_stability_stand_side_by_side(out: Path) -> None:
    """One figure, with a curve for each cell that has one; its numbers are those of the table."""
    material = read_material(Store(out))
    table = stability_frame([CELL, OTHER])
    other = pl.col("method") == OTHER.method
    table = table.filter(~other | (pl.col("n_pairs") <= 64)).with_columns(pl.col("overlap") - 0.1 * other)
    page = render(replace(material, stability=table))
    traces = data(page)["figures"]["sweep-z-stability"]["data"]
    assert [trace["name"] for trace in traces] == [CELL.method, OTHER.method]
    assert [trace["x"] for trace in traces] == [[16, 32, 64, 128, 256, 500], [16, 32, 64]]
    assert traces[1]["y"] == pytest.approx([0.5, 0.62, 0.71])
    assert len({trace["line"]["color"] for trace in traces}) == 2
    one = render(replace(material, stability=stability_frame([CELL])))
    assert "sweep-z-stability" not in figures(one)
    assert "cell-0-z-stability" in figures(one)


def test_cells_without_a_difference_are_named_and_not_drawn(tmp_path: Path) -> None:
    """Differences are none up to the rounding of float32; a real one is drawn."""
    pairs = IoiLike(layers=4, heads=3).pairs(8)
    nearly = [replace(pair, scores={"z": pair.scores["z"] * (1 + 1e-7)}) for pair in pairs]
    third = Cell("gpt2", "ioi", "third")
    other = [replace(pair, scores={"z": pair.scores["z"] * 1.01}) for pair in pairs]
    write_run(tmp_path, {CELL: pairs, OTHER: nearly, third: other})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert [name for name in figures(page) if name.startswith("difference")] == ["difference-z-2-0"]
    assert "every mean is the same up to rounding: second and atp." in visible(page)


def test_positive_is_blue_as_in_the_tutorial(page: str) -> None:
    assert 'const light = { scale: ["rgb(103,0,31)"' in page
    assert '"rgb(5,48,97)"], ink' in page


def test_the_words_say_what_was_computed(page: str) -> None:
    text = visible(page)
    assert "21 of 24 pairs scored, 3 failed; prompts of 14 to 16 tokens" in text
    assert "denoising, so 0 is the corrupted behaviour and 1 the clean one" in text
    assert "a first-order estimate of what patching would do" in text
    assert "Strongest heads, at “end”" in text
    assert "95% interval over 11 sampling units" in text
    assert "Complete: 29 of 32 pairs scored, 3 failed." in text


def test_the_table_ranks_by_absolute_mean(page: str) -> None:
    table = re.search(r'<table class="dense ranking">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    assert len(re.findall(r'data-head="0/z/\d+/\d+">L\d+H\d+</button>', table)) == 12
    means = [float(key) for key in re.findall(r'data-key="(-?[\d.e-]+)">[+\N{MINUS SIGN}]', table)][::2]
    assert len(means) == 12
    assert np.all(np.diff(np.abs(means)) <= 0)
    assert means[0] != 0


def test_failures_are_shown_with_their_reasons_and_escaped(page: str) -> None:
    text = visible(page)
    assert "unequal_length 2 998 clean has 14 tokens, corrupted has 15" in text
    assert "&lt;i&gt;long&lt;/i&gt; &amp; more" in page


def test_provenance_is_shown(page: str) -> None:
    text = visible(page)
    run = ("20261123-abcdef", "23 November 2026, 10:30 UTC", "torch 2.13.0", "prepend_bos false")
    for words in (*run, "ab" * 32, "cd" * 32):
        assert words in text, words


def test_the_job_file_of_the_page_is_one(page: str) -> None:
    text = html.unescape(re.search(r"<summary>The job file</summary><pre><code>(.*?)</code>", page, re.DOTALL)[1])
    spec = parse_spec(yaml.safe_load(text), source="the page")
    assert [str(cell) for cell in spec.cells] == ["gpt2 x ioi x atp", "gpt2 x ioi x second"]
    assert "attrib-batch run job.yaml --out runs/again attrib-batch report runs/again" in visible(page)


def test_the_page_forbids_itself_every_request(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_writing_twice_gives_the_same_page(out: Path, page: str) -> None:
    assert write_report(out).read_text(encoding="utf-8") == page


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    pair = Pair(0, {"z": np.ones((1, 1, 2)), "mlp_out": np.ones((1, 2))}, {0: HOSTILE})
    write_run(tmp_path, {CELL: [pair]}, failures={CELL: [Failure(1, message=HOSTILE)]})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    assert "<b>role</b>" not in page
    assert "&lt;b&gt;role&lt;/b&gt;" in page


def test_noising_is_explained_as_such(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.ones((1, 1, 2))})]}, method={"direction": "noise"})
    text = visible(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "noising, so 0 is the clean behaviour and \N{MINUS SIGN}1 the corrupted one" in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("atp", "a first-order estimate of what patching would do"),
        ("atp_ig", "the gradient averaged over 7 points"),
        ("atp_star", "Its scores are magnitudes"),
        ("exact", "the measured effect of one replacement at a time"),
    ],
)
def test_every_method_says_what_its_numbers_are(tmp_path: Path, kind: str, words: str) -> None:
    method = {"kind": kind, "ig_steps": 7 if kind == "atp_ig" else None}
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.ones((1, 1, 2))})]}, method=method)
    assert words in visible(write_report(tmp_path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("at", "stored", "ranked"), [("last", [4], "the last position"), (["A"], [1], "the positions that were asked for")]
)
def test_a_method_at_some_positions_shows_those_alone(
    tmp_path: Path, at: str | list[str], stored: list[int], ranked: str
) -> None:
    scores = {"z": np.ones((2, 2, 5)), "mlp_out": np.ones((2, 5))}
    pairs = [Pair(index, scores, roles={1: "A", 2: "B"}, stored=stored) for index in range(3)]
    write_run(tmp_path, {CELL: pairs}, method={"kind": "exact", "at": at})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    words = visible(page)
    assert f"Positions measured: {at if at == 'last' else 'A'}." in words
    assert f"Strongest heads, at {ranked}" in words
    assert "all positions, summed" not in words
    assert ("All heads, at the last position" in words) == (at == "last")
    assert "not drawn" not in words


def test_a_method_of_a_later_release_is_shown_without_words_for_it(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.ones((1, 1, 2))})]}, method={"kind": "new", "metric": "own"})
    assert "units of own" in visible(write_report(tmp_path).read_text(encoding="utf-8"))


def test_a_divergence_is_lower_on_clean_prompts_without_a_warning(tmp_path: Path) -> None:
    pairs = [Pair(i, {"z": np.full((1, 1, 2), -0.5)}, clean=0.0, corrupted=2.0) for i in range(3)]
    write_run(tmp_path, {CELL: pairs}, method={"metric": "kl"})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'class="warning"' not in page
    assert "\N{MINUS SIGN}2.000 nats" in visible(page)
    np.testing.assert_array_equal(drawn_matrix(page, "cell-0-z-answer"), [[0.25]])


@pytest.mark.parametrize(
    ("clean", "warning"),
    [
        ((1.0, 1.0), "cannot be normalised: maps and tables show raw means"),
        ((0.0, 0.5), "divide by this negative gap"),
        ((0.0, 3.0), "less than two standard errors"),
    ],
)
def test_a_gap_one_should_not_divide_by_is_pointed_out(
    tmp_path: Path, clean: tuple[float, float], warning: str
) -> None:
    pairs = [Pair(i, {"z": np.ones((1, 1, 2))}, clean=value, corrupted=1.0) for i, value in enumerate(clean)]
    write_run(tmp_path, {CELL: pairs})
    assert warning in visible(write_report(tmp_path).read_text(encoding="utf-8"))


def test_without_roles_heads_are_ranked_at_the_last_position(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(i, {"z": np.full((1, 2, 2), i)}) for i in range(3)]})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Strongest heads, at the last position" in visible(page)
    assert set(figures(page)) == {"cell-0-z-answer", "cell-0-z-position", "cell-0-z-all"}


def test_what_is_still_to_do_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.ones((1, 1, 2))})]})
    write_manifest(tmp_path, {CELL: 10, OTHER: 10})
    text = visible(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Unfinished: 19 of 20 pairs of 2 cells are still to do" in text
    assert "No pair of this cell has been scored" in text


def test_long_prompts_lose_the_positions_that_are_zero_throughout(tmp_path: Path) -> None:
    scores = np.zeros((2, 1, 100))
    scores[:, :, 90:] = 1
    write_run(tmp_path, {CELL: [Pair(0, {"z": scores})]})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert drawn_matrix(page, "cell-0-z-position").shape == (2, 10)
    assert "Positions 0 to 89 are not drawn: every score there is exactly 0" in visible(page)


@pytest.mark.slow
def test_a_sweep_that_outgrows_the_page_is_shown_in_less_detail(out: Path) -> None:
    material = replace(read_material(Store(out)), stability=None)
    sizes, counts = [], []
    for budget in (10**9, 9_000, 6_000, 3_000):
        page = render(material, budget=budget)
        specs = data(page)["figures"]
        sizes.append(len(json.dumps(specs)))
        counts.append(len(specs))
    assert sizes == sorted(sizes, reverse=True)
    assert counts[0] == counts[1] > counts[2] > counts[3]
    assert "hovering shows means only" in visible(render(material, budget=9_000))
    assert "more maps than one page can hold" in visible(page)


def test_the_layers_of_the_residual_stream_are_no_parts_of_a_sum(tmp_path: Path) -> None:
    """Each contains what is below it; those of MLPs are parts."""
    scores = {name: np.ones((12, 3)) + np.arange(3) for name in ("resid_post", "mlp_out")}
    write_run(tmp_path, {CELL: [Pair(i, scores) for i in range(3)]})
    text = visible(write_report(tmp_path).read_text(encoding="utf-8"))
    assert text.count("The strongest layer is") + text.count("the strongest layer is") == 2
    assert text.count("The five strongest hold") == 1


def test_a_cell_without_a_scored_pair_has_a_dash_for_each_mean(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.ones((1, 1, 2))})], OTHER: []})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "\N{EN DASH} ±" not in visible(page)
    assert "± \N{EN DASH}" in visible(page)  # of one pair there is no spread


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "+0.000"),
        (0.00051, "+0.001"),
        (-0.00042, "\N{MINUS SIGN}0.0004"),
        (3e-7, "+3e\N{MINUS SIGN}07"),
        (-1.5, "\N{MINUS SIGN}1.500"),
    ],
)
def test_a_number_is_0_only_where_it_is(value: float, shown: str) -> None:
    assert signed(value) == shown
    assert plain(abs(value)) == shown.lstrip("+\N{MINUS SIGN}")


def test_a_stale_summary_is_renewed(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.ones((1, 1, 2))})]})
    write_report(tmp_path)
    write_run(tmp_path, {CELL: [Pair(i, {"z": np.ones((1, 1, 2))}) for i in range(2)]}, cuts=(1,))
    assert "2 of 2 pairs scored" in visible(write_report(tmp_path).read_text(encoding="utf-8"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no manifest\.json"):
        write_report(tmp_path)


@pytest.mark.slow
def test_reporting_imports_neither_torch_nor_ray() -> None:
    code = "import sys, attrib_batch.report; sys.exit(bool({'torch', 'ray', 'nnsight'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=60)
