"""Stability, templates, tests and comparisons: what a page says where the tables are there, and where they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from attrib_batch.report.page import read_material, render
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from tests.report.test_page import data, drawn_matrix, figures, visible
from tests.support.synthetic_report import stability_frame, with_tests
from tests.support.synthetic_run import IoiLike, Pair, write_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from attrib_batch.report.sections.cell import Material

CELL, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "second")


def material_of(out: Path, cells: Mapping[Cell, Sequence[Pair]]) -> Material:
    write_run(out, cells)
    return read_material(Store(out))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material_of(tmp_path_factory.mktemp("run"), {CELL: IoiLike().pairs(40)})


def test_the_answer_names_the_strongest_with_its_interval(material: Material) -> None:
    text = visible(render(material))
    row = material.summary.heads.filter(scope="role", role="end", layer=9, head=9).row(0, named=True)
    assert f"the strongest head is L9H9 with +{row['mean_normalized']:.3f} (95% interval +" in text
    assert "of the gap; then " in text


def test_tests_of_many_heads_are_used_where_the_summary_has_them(material: Material) -> None:
    text = visible(render(replace(material, summary=with_tests(material.summary))))
    assert (
        "7 of 144 heads differ from 0 with correction for testing all of them (Benjamini-Hochberg, q &lt; 0.05)" in text
    )
    assert "has t intervals" not in text


def test_a_summary_without_tests_has_t_intervals_and_says_so(material: Material) -> None:
    plain = material.summary.heads.drop("low", "high", "low_normalized", "high_normalized", "q_bh", strict=False)
    plain = plain.drop("p_value", "q_by", "survives", strict=False)
    text = visible(render(replace(material, summary=replace(material.summary, heads=plain))))
    assert "have a 95% interval without 0, not corrected for looking at all of them" in text
    assert "This summary has t intervals and no tests with correction for many heads." in text


def test_intervals_of_the_summary_are_drawn(material: Material) -> None:
    summary = with_tests(material.summary)
    page = render(replace(material, summary=summary))
    row = summary.heads.filter(scope="role", role="end", layer=9, head=9).row(0, named=True)
    assert drawn_matrix(page, "cell-0-z-answer", "low")[9, 9] == pytest.approx(row["low_normalized"], rel=1e-5)


def test_stability_is_one_curve_and_one_sentence(material: Material) -> None:
    page = render(replace(material, stability=stability_frame([CELL])))
    text = visible(page)
    assert "Samples of 500 pairs share 97.0% (89.0% to 100%) of their 10 strongest heads" in text
    assert "From 128 pairs on they share at least 90.0%." in text
    assert "cell-0-z-stability" in figures(page)


def test_one_curve_is_drawn_where_the_table_has_several(material: Material) -> None:
    table = stability_frame([CELL])
    five = table.with_columns(top_k=pl.lit(5, pl.Int64), overlap=pl.lit(0.5))
    assert "97.0% (89.0% to 100%) of their 10" in visible(
        render(replace(material, stability=pl.concat([five, table], how="vertical_relaxed")))
    )


def test_a_cell_of_one_chunk_has_no_curve_and_says_why(material: Material) -> None:
    assert "too few chunks of pairs" in visible(render(replace(material, stability=stability_frame([OTHER]))))


@pytest.mark.parametrize(("n_pairs", "more"), [(500, None), (128, None), (64, "That is less than 90.0%")])
def test_one_number_of_pairs_is_no_curve(n_pairs: int, more: str | None, material: Material) -> None:
    page = render(replace(material, stability=stability_frame([CELL]).filter(n_pairs=n_pairs)))
    text = visible(page)
    assert f"Samples of {n_pairs} pairs share" in text
    assert "pairs on they share" not in text
    assert "Even those of" not in text
    assert ("That is less than" in text) == (more is not None)
    assert "cell-0-z-stability" not in figures(page)


def test_the_fewest_pairs_that_were_compared_may_be_enough(material: Material) -> None:
    table = stability_frame([CELL]).filter(pl.col("n_pairs") >= 128)
    text = visible(render(replace(material, stability=table)))
    assert "Even those of 128 pairs, the fewest that were compared, share 90.0% or more." in text
    assert "pairs on they share" not in text


def test_too_few_pairs_are_called_so(material: Material) -> None:
    few = stability_frame([CELL]).filter(pl.col("n_pairs") < 100)
    text = visible(render(replace(material, stability=few)))
    assert "That is less than 90.0%: more pairs would change which heads are named." in text


def test_without_the_tables_the_page_says_what_is_missing(material: Material) -> None:
    text = visible(render(replace(material, stability=None)))
    assert "The summary has no table of subsamples (summary/stability.parquet)" in text
    assert "No pair of this cell was measured by activation patching" in text


def test_a_head_that_serves_some_wordings_only_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(60):
        scores = rng.normal(0, 0.01, (2, 3, 4))
        scores[1, 2, -1] += 1
        scores[0, 1, -1] += 2 * (index % 5 == 0)
        pairs.append(Pair(index, {"z": scores}, {3: "end"}, template=f"T{index % 5}"))
    page = render(material_of(tmp_path, {CELL: pairs}))
    assert "L0H1 (1) has an interval without 0 in fewer than half of 5 templates: it serves some only." in visible(page)
    spec = data(page)["figures"]["cell-0-z-templates"]
    assert spec["x"] == [f"T{index}" for index in range(5)]
    assert spec["n"] == 12
    row = spec["y"].index("L0H1")
    np.testing.assert_allclose(drawn_matrix(page, "cell-0-z-templates")[row] * 4, [2, 0, 0, 0, 0], atol=0.02)


def test_measured_scores_need_no_verification(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: IoiLike(layers=2, heads=2).pairs(6)}, method={"kind": "exact"})
    text = visible(render(read_material(Store(tmp_path))))
    assert "there is no estimate to check" in text
    assert "nothing says how good these estimates are" not in text


def test_one_template_is_not_compared_with_itself(tmp_path: Path) -> None:
    pairs = [replace(pair, template="T") for pair in IoiLike(layers=2, heads=2).pairs(6)]
    assert "cell-0-z-templates" not in figures(render(material_of(tmp_path, {CELL: pairs})))


def test_cells_are_compared_on_one_scale_with_their_rank_correlation(tmp_path: Path) -> None:
    pairs = IoiLike(layers=4, heads=3).pairs(8)
    double = [replace(pair, scores={"z": 2 * pair.scores["z"]}) for pair in pairs]
    page = render(replace(material_of(tmp_path, {CELL: pairs, OTHER: double}), compare=None))
    specs = data(page)["figures"]
    assert specs["sweep-z-0"]["limit"] == specs["sweep-z-1"]["limit"] == specs["cell-1-z-answer"]["limit"]
    np.testing.assert_allclose(
        drawn_matrix(page, "difference-z-1-0"), drawn_matrix(page, "sweep-z-0"), rtol=1e-5, atol=1e-7
    )
    text = visible(page)
    assert "second \N{MINUS SIGN} atp" in text
    assert "These are differences of means, some or all without intervals" in text
    assert "1 atp 1.00 1.00 2 second 1.00 1.00" in text


def test_differences_with_intervals_are_used_where_they_are_given(tmp_path: Path) -> None:
    pairs = IoiLike(layers=4, heads=3).pairs(8)
    material = material_of(tmp_path, {CELL: pairs, OTHER: pairs})

    def compare(a: Cell, b: Cell, *, normalized: bool) -> pl.DataFrame:
        assert (a, b, normalized) == (OTHER, CELL, True)
        rows = material.summary.heads.filter(method="atp", component="z")
        numbers = {"difference": 0.25, "low": 0.125, "high": 0.5, "n_pairs_a": 8, "n_pairs_b": 7}
        keys = ("component", "scope", "role", "layer", "head")
        return rows.select(*keys, **{name: pl.lit(value) for name, value in numbers.items()})

    page = render(replace(material, compare=compare))
    np.testing.assert_array_equal(drawn_matrix(page, "difference-z-1-0"), np.full((4, 3), 0.25))
    np.testing.assert_array_equal(drawn_matrix(page, "difference-z-1-0", "high"), np.full((4, 3), 0.5))
    assert data(page)["figures"]["difference-z-1-0"]["n"] == 7
    assert "Hover gives 95% intervals; they are paired where the pairs are the same." in visible(page)


def test_one_cell_has_nothing_to_be_compared_with(material: Material) -> None:
    page = render(material)
    assert 'id="sweep"' not in page
    assert 'id="answers"' not in page


def test_noising_is_turned_where_it_is_compared_with_denoising(tmp_path: Path) -> None:
    pairs = IoiLike(layers=4, heads=3).pairs(8)
    halves = [replace(pair, scores={"z": -0.5 * pair.scores["z"]}) for pair in pairs]
    material = replace(material_of(tmp_path / "halves", {CELL: pairs, OTHER: halves}), compare=None)
    material.manifest.job["methods"][1]["direction"] = "noise"
    page = render(material)
    means = drawn_matrix(page, "sweep-z-0")
    np.testing.assert_allclose(drawn_matrix(page, "difference-z-1-0"), -0.5 * means, atol=1e-7)
    assert "both are turned so that what brings about the clean behaviour is positive" in visible(page)
    assert "1 atp 1.00 1.00" in visible(page)


def test_noising_that_is_denoising_of_the_mirrors_has_no_map_of_differences(tmp_path: Path) -> None:
    pairs = IoiLike(layers=4, heads=3).pairs(8)
    mirrored = [replace(pair, scores={"z": -pair.scores["z"]}) for pair in pairs]
    material = replace(material_of(tmp_path, {CELL: pairs, OTHER: mirrored}), compare=None)
    material.manifest.job["methods"][1]["direction"] = "noise"
    page = render(material)
    assert "difference-z-1-0" not in figures(page)
    assert "noising of one is denoising of the other: " in visible(page)
