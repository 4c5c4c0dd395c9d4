"""Runs in every state: each has a page that says what it is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from attrib_batch.analysis import summarize
from attrib_batch.report import write_report
from attrib_batch.report.page import read_material, render
from attrib_batch.report.wording import describe_state
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.report.test_page import data, drawn_matrix, figures, visible
from tests.support.synthetic_report import examples_frame, stability_frame, with_tests
from tests.support.synthetic_run import Failure, IoiLike, Pair, write_chunk, write_manifest, write_run

if TYPE_CHECKING:
    from pathlib import Path

CELL = Cell("gpt2", "ioi", "atp")


def page_of(out: Path) -> str:
    return write_report(out).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("expected", "scored", "failed", "name"),
    [(0, 0, 0, "empty"), (5, 0, 0, "empty"), (5, 2, 1, "unfinished"), (5, 0, 5, "failed"), (5, 3, 2, "complete")],
)
def test_a_state_has_a_name(expected: int, scored: int, failed: int, name: str) -> None:
    assert describe_state(expected, scored, failed).name == name


def test_a_run_in_which_nothing_is_committed(tmp_path: Path) -> None:
    write_manifest(tmp_path, {CELL: 10, Cell("gpt2", "other", "atp"): 1})
    page = page_of(tmp_path)
    assert "Empty: none of 11 pairs of 2 cells has been computed yet." in visible(page)
    assert "No pair of this cell has been scored" in visible(page)
    assert figures(page) == []


def test_a_run_in_which_every_pair_failed(tmp_path: Path) -> None:
    write_manifest(tmp_path, {CELL: 2})
    write_chunk(tmp_path, Chunk(CELL, 0, 2), [], [Failure(0), Failure(1)])
    page = page_of(tmp_path)
    assert "Failed: none of 2 pairs could be scored." in visible(page)
    assert "unequal_length 2 0 clean has 14 tokens" in visible(page)
    assert figures(page) == []


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: IoiLike(layers=2, heads=2).pairs(4)})
    write_manifest(tmp_path, {CELL: 10})
    assert "Unfinished: 6 of 10 pairs are still to do (4 of 10 pairs scored, 0 failed)." in visible(page_of(tmp_path))


def test_one_pair_has_no_interval_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: IoiLike(layers=3, heads=4).pairs(1)})
    page = page_of(tmp_path)
    text = visible(page)
    assert "Complete: all 1 pair scored." in text
    assert "There are no intervals: all pairs are one sampling unit." in text
    assert "over 1 pair; line: 95% interval over 1 sampling unit" in text
    assert "low" not in data(page)["figures"]["cell-0-z-answer"]
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_one_layer_and_one_head(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(i, {"z": np.full((1, 1, 3), 0.5 + i)}) for i in range(3)]})
    page = page_of(tmp_path)
    assert drawn_matrix(page, "cell-0-z-answer").shape == (1, 1)
    assert "hold" not in visible(page).split("The answer")[1].split("Where")[0]


def test_scores_that_are_all_zero(tmp_path: Path) -> None:
    pairs = [Pair(i, {"z": np.zeros((2, 2, 3)), "mlp_out": np.zeros((2, 3))}, {2: "end"}) for i in range(3)]
    write_run(tmp_path, {CELL: pairs})
    text = visible(page_of(tmp_path))
    assert text.count("Every mean score at “end” is 0.") == 2
    assert text.count("By position there is nothing to draw: every score is exactly 0.") == 2


def test_eighty_layers_of_sixty_four_heads(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: IoiLike(layers=80, heads=64).pairs(4)})
    page = page_of(tmp_path)
    assert drawn_matrix(page, "cell-0-z-answer").shape == (80, 64)
    assert len(page.encode()) < 6_500_000
    assert len(data(page)["cells"][0]["components"]["z"]["extremes"]) == 15


def test_prompts_of_many_lengths_are_counted_from_the_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair(i, {"z": rng.normal(size=(2, 2, 5 + 40 * i))}) for i in range(6)]
    write_run(tmp_path, {CELL: pairs})
    page = page_of(tmp_path)
    spec = data(page)["figures"]["cell-0-z-position"]
    assert spec["xaxis"] == "from_end"
    assert spec["x"] == list(range(-160, 0))
    assert [spec["n"][-1], spec["n"][-6], spec["n"][0]] == [6, 5, 2]
    assert "Only the last 160 positions are drawn" in visible(page)
    assert "Prompts have 5 to 205 tokens, so positions count back" in visible(page)


def test_no_position_is_mixed_with_another_of_prompts_of_other_lengths(tmp_path: Path) -> None:
    pairs = [Pair(i, {"z": np.full((1, 1, 4 + i), float(i + 1))}) for i in range(2)]
    write_run(tmp_path, {CELL: pairs})
    page = page_of(tmp_path)
    np.testing.assert_allclose(
        drawn_matrix(page, "cell-0-z-position")[0] * 4, [2, 1.5, 1.5, 1.5, 1.5], rtol=1e-6
    )  # the gap is 4
    assert data(page)["figures"]["cell-0-z-position"]["n"] == [1, 2, 2, 2, 2]


def test_a_sweep_of_three_models_datasets_and_methods_fits(tmp_path: Path) -> None:
    shapes = {"gpt2": (12, 12), "smollm2-135m": (30, 9), "llama-8b": (32, 32)}
    pairs = {model: IoiLike(layers=layers, heads=heads).pairs(6) for model, (layers, heads) in shapes.items()}
    names = [Cell(m, d, k) for m in shapes for d in ("ioi", "names", "mixed") for k in ("atp", "ig", "exact")]
    # No two alike, so that all differences there are can be drawn.
    cells = {
        cell: [replace(pair, scores={"z": (1 + index / 30) * pair.scores["z"]}) for pair in pairs[cell.model]]
        for index, cell in enumerate(names)
    }
    write_run(tmp_path, cells)
    summarize(tmp_path)
    material = read_material(Store(tmp_path))
    page = render(
        replace(
            material,
            summary=with_tests(material.summary),
            examples=examples_frame(cells, material.summary, n_heads=4),
            stability=stability_frame(list(cells)),
        )
    )
    assert len(page.encode()) < 12_000_000
    assert sum(name.startswith("sweep-z-") for name in figures(page)) == 27 + 1
    assert "sweep-z-stability" in figures(page)
    assert sum(name.startswith("difference-z-") for name in figures(page)) == 24
    text = visible(page)
    assert "Complete: all 162 pairs of 27 cells scored." in text
    assert "Models of different shape have no heads in common and are not compared." in text
    assert "12 more are not drawn." in text
