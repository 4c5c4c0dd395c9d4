from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from attrib_batch.analysis import read_agreement, read_manifest, read_summary, summarize, write_agreement
from attrib_batch.errors import OutputError
from attrib_batch.report import write_report
from attrib_batch.report.drawing.maps import Detail
from attrib_batch.report.page import read_material, render
from attrib_batch.report.sections.verdict import Agreement, Grade, Value, judge
from attrib_batch.report.sections.verification import MOST_POINTS, build_verification, read_verification, thinned
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from tests.report.test_page import data, figures, visible
from tests.support.synthetic_run import IoiLike, Pair, write_run
from tests.support.synthetic_verification import estimated_from, write_exact, write_sampled_run, write_verified_run

if TYPE_CHECKING:
    from pathlib import Path

CELL, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "second")
QUESTION = "Can these scores be trusted?"


def page_of(out: Path) -> str:
    write_agreement(out, seed=0, resamples=50)
    return write_report(out).read_text(encoding="utf-8")


def numbers(page: str, heading: str) -> str:
    """The text of the table under a heading."""
    return visible(re.search(rf"<h4>{heading}.*?</figure>", page, re.DOTALL)[0])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = IoiLike(layers=4, heads=5, without_heads=True).pairs(24)
    return write_verified_run(tmp_path_factory.mktemp("run"), {CELL: {"bias": 0.5}}, pairs=pairs)


@pytest.fixture(scope="module")
def page(out: Path) -> str:
    return page_of(out)


def test_a_run_that_was_not_verified_has_no_section(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: IoiLike(layers=2, heads=2).pairs(4)})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for absent in (QUESTION, 'id="methods"', "-verified-", '<p class="verdict'):
        assert absent not in page


def test_only_verified_cells_have_a_section(tmp_path: Path) -> None:
    pairs = IoiLike(layers=2, heads=2).pairs(6)
    write_run(tmp_path, {CELL: pairs, OTHER: pairs})
    write_exact(tmp_path, OTHER, pairs)
    page = page_of(tmp_path)
    assert page.count(QUESTION) == 1
    assert 'id="cell-1-verification"' in page
    assert 'id="cell-0-verification"' not in page
    assert 'id="methods"' not in page


def test_both_plots_of_every_component_are_drawn(page: str) -> None:
    verified = {name for name in figures(page) if "-verified-" in name}
    assert verified == {f"cell-0-{c}-verified-{plot}" for c in ("z", "mlp_out") for plot in ("scores", "means")}
    assert len(page.encode()) < 8_000_000


def test_the_table_holds_the_agreement(page: str, out: Path) -> None:
    shown = numbers(page, "Agreement with activation patching")
    rows = read_agreement(out).filter(component="z")
    for statistic in ("pearson@end", "pearson@all", "spearman@end", "map_pearson@end"):
        row = rows.row(by_predicate=pl.col("statistic") == statistic, named=True)
        assert f"{row['value']:.3f} {row['low']:.3f} to {row['high']:.3f}" in shown, statistic
    assert "12 sampling units: so few make them too narrow" in shown


def test_the_head_that_misleads_is_named_first(page: str) -> None:
    shown = numbers(page, "Where the estimate misleads most, at “end”")
    first = re.search(r"L\d+H\d+ \S+ \S+ (\S+) ", shown)
    assert first[0].startswith("L3H0 ")
    assert float(first[1]) == pytest.approx(0.5, abs=0.05)
    assert '"L3H0"' in json.dumps(data(page)["figures"]["cell-0-z-verified-means"])


def test_the_sample_and_its_place_are_said(page: str) -> None:
    text = visible(page)
    assert "24 of 24 scored pairs were scored again by activation patching" in text
    assert "One point per pair and head, 480 in all." in text
    assert "magnitudes" not in text
    assert '<a href="#cell-0-verification">How far to trust them here</a>' in page


def test_only_the_end_is_judged_where_nothing_else_was_measured(tmp_path: Path) -> None:
    pairs = IoiLike(layers=3, heads=3).pairs(24)
    write_sampled_run(tmp_path, {CELL: estimated_from(pairs)}, pairs, at="last")
    page = page_of(tmp_path)
    assert {name.partition("@")[2] for name in read_agreement(tmp_path)["statistic"]} == {"end"}
    shown = numbers(page, "Agreement with activation patching")
    assert "Pearson correlation" in shown
    assert "all positions" not in shown
    assert "Over all positions" not in visible(re.search(r'<p class="verdict.*?</p>', page, re.DOTALL)[0])


def test_methods_are_compared_where_several_were_verified(tmp_path: Path) -> None:
    pairs = IoiLike(layers=4, heads=5).pairs(12)
    write_verified_run(tmp_path, {CELL: {}, OTHER: {"noise": 0.5}}, pairs=pairs)
    page = page_of(tmp_path)
    section = re.search(r'<section id="methods".*?</section>', page, re.DOTALL)[0]
    rows = [visible(row) for row in re.findall(r"<tr>.*?</tr>", section, re.DOTALL)[1:]]
    assert [row.split()[3] for row in rows] == ["atp", "second"]
    assert float(rows[0].split()[4]) > float(rows[1].split()[4])
    assert 'href="#cell-1-verification"' in section


def test_magnitudes_say_that_they_are(tmp_path: Path) -> None:
    pairs = IoiLike(layers=2, heads=2).pairs(6)
    magnitudes = [replace(pair, scores={"z": np.abs(pair.scores["z"])}) for pair in pairs]
    write_run(tmp_path, {CELL: magnitudes}, method={"kind": "atp_star"})
    write_exact(tmp_path, CELL, pairs)
    page = page_of(tmp_path)
    assert "they are compared with absolute exact scores; signs are not judged" in visible(page)
    assert "|exact|, logits" in page
    assert "same sign" not in visible(page)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    pair = Pair(0, {"z": np.arange(4.0).reshape(1, 2, 2)}, {0: hostile})
    write_run(tmp_path, {CELL: [pair]}, method={"metric": hostile})
    write_exact(tmp_path, CELL, [pair])
    page = page_of(tmp_path)
    assert QUESTION in page
    assert "alert(1)</script>" not in page


def test_one_pair_and_constant_scores_are_shown_as_what_they_are(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(0, {"z": np.zeros((1, 1, 2))})]})
    write_exact(tmp_path, CELL, [Pair(0, {"z": np.zeros((1, 1, 2))})])
    text = visible(page_of(tmp_path))
    assert "At the last position nothing can be said: the scores hardly vary." in text
    assert "No mean estimate is off by 1% of the largest exact mean." in text


def test_writing_twice_gives_the_same_page(out: Path, page: str) -> None:
    assert write_report(out).read_text(encoding="utf-8") == page


def test_a_page_that_is_too_large_keeps_the_words(out: Path) -> None:
    small = render(read_material(Store(out)), budget=1000)
    assert QUESTION in small
    assert "Where the estimate misleads most" in small
    assert figures(small) == []


def test_less_detail_is_fewer_points_and_then_means_alone(tmp_path: Path) -> None:
    write_verified_run(tmp_path, {CELL: {}}, pairs=IoiLike().pairs(24))
    write_agreement(tmp_path, seed=0, resamples=20)
    found = read_verification(tmp_path, read_manifest(tmp_path))[CELL]
    summarize(tmp_path)
    heads = read_summary(tmp_path).heads
    built = [build_verification(0, found, heads, method={}, unit="logits", detail=detail) for detail in Detail]
    drawn = [section.components[0].figures for section in built]
    assert [len(figures) for figures in drawn] == [2, 2, 1]
    assert "2,478 of 3,456: the strongest" in drawn[0][0].caption
    assert drawn[1][0].size < drawn[0][0].size / 2
    assert drawn[2][0] == drawn[0][1]


def test_a_verification_that_no_longer_matches_is_refused(tmp_path: Path) -> None:
    pairs = IoiLike(layers=2, heads=2).pairs(4)
    write_run(tmp_path, {CELL: pairs})
    write_exact(tmp_path, CELL, pairs)
    page_of(tmp_path)
    write_exact(tmp_path, CELL, [replace(pairs[0], pair_id=99)], start=100)
    with pytest.raises(OutputError, match="pair_id 99"):
        write_report(tmp_path)


def test_thinning_keeps_the_strongest_and_a_share_of_the_others() -> None:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"exact": rng.normal(0, 1, 20_000), "estimate": rng.normal(0, 1, 20_000)})
    kept = thinned(rows, MOST_POINTS)
    assert MOST_POINTS // 2 < len(kept) <= MOST_POINTS
    strength = rows.select(pl.max_horizontal(pl.all().abs())).to_series()
    limit = strength.sort(descending=True)[MOST_POINTS // 2 - 1]
    kept_strength = kept.select(pl.max_horizontal(pl.all().abs())).to_series()
    assert (kept_strength >= limit).sum() == MOST_POINTS // 2
    others = kept_strength.filter(kept_strength < limit)
    assert others.mean() == pytest.approx(strength.filter(strength < limit).mean(), abs=0.02)
    assert thinned(rows.head(10), MOST_POINTS).equals(rows.head(10))


def agreed(end: Value, everywhere: Value, *, slope: float = 1.0) -> Agreement:
    return {"pearson@end": end, "pearson@all": everywhere, "slope@end": Value(slope, slope, slope)}


@pytest.mark.parametrize(
    ("pearson", "grade", "words"),
    [
        (0.97, Grade.CLOSELY, "follow activation patching closely."),
        (0.95, Grade.CLOSELY, "closely"),
        (0.949, Grade.EXCEPTIONS, "with exceptions: look at the points far from the line"),
        (0.8, Grade.EXCEPTIONS, "with exceptions"),
        (0.79, Grade.NOT, "do not follow activation patching: use exact, or try atp_ig"),
        (-0.99, Grade.NOT, "do not follow"),
        (None, Grade.UNKNOWN, "nothing can be said"),
    ],
)
def test_the_verdict_follows_from_the_numbers(pearson: float | None, grade: Grade, words: str) -> None:
    verdict = judge(agreed(Value(pearson, pearson, pearson), Value(0.97, 0.96, 0.98)), {"kind": "atp"}, "“end”")
    assert verdict.grade is grade
    assert words in verdict.headline


def test_the_verdict_says_what_else_a_reader_must_know() -> None:
    certain, wide = Value(0.97, 0.96, 0.98), Value(0.96, 0.85, 0.99)
    assert "lower grade" not in judge(agreed(certain, certain), {}, "“end”").detail
    assert "reaches into a lower grade: verify more pairs" in judge(agreed(wide, certain), {}, "“end”").detail
    assert "no interval" in judge(agreed(Value(0.97, None, None), certain), {}, "“end”").detail
    assert "too small, 0.500" in judge(agreed(certain, certain, slope=0.5), {}, "“end”").detail
    low = judge(agreed(certain, Value(0.6, 0.5, 0.7)), {}, "“end”").detail
    assert "Over all positions the estimates do not follow activation patching: Pearson is 0.600" in low
    for kind, advice in (("atp_ig", "more ig_steps"), ("atp_star", "use exact."), ("own", "use exact.")):
        assert advice in judge(agreed(Value(0.1, 0.0, 0.2), certain), {"kind": kind}, "“end”").headline
