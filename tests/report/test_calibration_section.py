"""What a page says and draws of calibrated means."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from attrib_batch.analysis import read_summary, write_agreement
from attrib_batch.report import write_report
from attrib_batch.report.sections.calibration import pairs_to_halve
from attrib_batch.spec import Cell
from tests.report.test_page import data, figures, visible
from tests.support.synthetic_run import IoiLike, write_run
from tests.support.synthetic_verification import estimated_from, write_exact, write_sampled_run

CELL = Cell("gpt2", "ioi", "atp")
N_PAIRS, N_UNITS = 120, 12


def page_of(out: Path) -> str:
    write_agreement(out, seed=0, resamples=50)
    return write_report(out).read_text(encoding="utf-8")  # type: ignore[union-attr]


def drawn(trace: dict[str, Any]) -> np.ndarray:
    """The numbers of a trace, which Plotly writes in base64."""
    return np.frombuffer(base64.b64decode(trace["x"]["bdata"]), trace["x"]["dtype"])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    exact = IoiLike(layers=12, heads=12).pairs(N_PAIRS)
    write_sampled_run(folder, {CELL: estimated_from(exact, bias=0.5)}, exact, n_units=N_UNITS)
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return page_of(out)


def test_one_sentence_says_what_the_sample_bought(page: str, out: Path) -> None:
    strongest = (
        read_summary(out).heads.filter(role="end").sort(pl.col("calibrated_mean").abs(), descending=True).head(20)
    )
    worth = round(strongest["effective_pairs"].median())  # type: ignore[arg-type]
    said = re.search(r'<p class="bought">(.*?)</p>', page, re.DOTALL)
    assert said is not None
    text = visible(said[1])
    assert f"Calibrated by the estimates of all 120 pairs, 24 measured pairs are worth {worth} " in text
    assert "(median over the 20 strongest heads)" in text
    share = float(re.search(r"is (\d\.\d\d) times as wide as that of the measured pairs alone", text)[1])  # type: ignore[index]
    assert 0.3 < share < 1


def test_the_strongest_are_drawn_with_what_is_known_of_them(page: str, out: Path) -> None:
    assert "cell-0-z-calibrated" in figures(page)
    estimate, exact, calibrated = data(page)["figures"]["cell-0-z-calibrated"]["data"]
    assert [trace["name"] for trace in (estimate, exact, calibrated)] == [
        "estimate", "exact, measured pairs", "calibrated",
    ]  # fmt: skip
    heads = read_summary(out).heads.filter(role="end")
    strongest = heads.sort(pl.col("calibrated_mean").abs(), descending=True).row(0, named=True)
    assert calibrated["text"][0] == f"L{strongest['layer']}H{strongest['head']}"
    for trace, column in ((calibrated, "calibrated_mean"), (estimate, "mean")):
        assert drawn(trace)[0] == np.float32(strongest[column])
    assert len(calibrated["text"]) == 20


def test_the_heads_that_mislead_have_their_calibrated_means(page: str, out: Path) -> None:
    table = re.search(r"<h4>Where the estimate misleads most.*?</figure>", page, re.DOTALL)
    assert table is not None
    first = re.search(r"<tbody>\s*<tr>(.*?)</tr>", table[0], re.DOTALL)
    assert first is not None
    row = read_summary(out).heads.filter(role="end", layer=11, head=0).row(0, named=True)
    assert "L11H0" in first[1]
    minus = "\N{MINUS SIGN}"
    ends = f"{row['calibrated_low']:+.3f} to {row['calibrated_high']:+.3f}".replace("-", minus)
    assert ends in visible(first[1])
    assert row["mean"] > 0.4 > abs(row["calibrated_mean"])


def test_magnitudes_are_calibrated_as_magnitudes(tmp_path: Path) -> None:
    exact = IoiLike(layers=2, heads=2).pairs(40)
    magnitudes = [replace(pair, scores={"z": np.abs(pair.scores["z"])}) for pair in exact]
    write_sampled_run(tmp_path, {CELL: magnitudes}, exact, method={"kind": "atp_star"})
    page = page_of(tmp_path)
    assert "Calibrated by the estimates of all 40 pairs, 24 measured pairs are worth" in visible(page)
    _, exact_of_sample, calibrated = data(page)["figures"]["cell-0-z-calibrated"]["data"]
    assert drawn(calibrated).min() > 0
    assert drawn(exact_of_sample).min() > 0


@pytest.mark.parametrize(
    ("n_pairs", "n_units", "said"),
    [
        (40, 5, "they take 8 measured sampling units or more, and these are 5."),
        (40, 20, "All 40 pairs were measured, so that calibrated means are those of the exact effects."),
    ],
)
def test_samples_of_other_sizes(n_pairs: int, n_units: int, said: str, tmp_path: Path) -> None:
    exact = IoiLike(layers=2, heads=2).pairs(n_pairs)
    write_sampled_run(tmp_path, {CELL: estimated_from(exact)}, exact, n_units=n_units)
    assert said in visible(page_of(tmp_path))


def test_a_sample_that_is_not_random_says_what_to_do(tmp_path: Path) -> None:
    exact = IoiLike(layers=2, heads=2).pairs(40)
    write_run(tmp_path, {CELL: estimated_from(exact)})
    write_exact(tmp_path, CELL, exact[:30])
    text = visible(page_of(tmp_path))
    assert "the measured pairs are no random sample of all that are scored now" in text
    assert "cell-0-z-calibrated" not in text


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(("n", "n_all"), [(64, 2000), (64, 200), (200, 100_000)])
def test_so_many_measured_pairs_halve_the_interval(correlation: float, n: int, n_all: int) -> None:
    def variance(measured: float) -> float:
        return (1 - correlation**2) / measured + correlation**2 / n_all

    needed = pairs_to_halve(n, 1 / variance(n), n_all)
    if needed is None:
        assert variance(n_all) > variance(n) / 4
    else:
        assert n < needed <= n_all
        assert variance(needed) == pytest.approx(variance(n) / 4, rel=0.02)
