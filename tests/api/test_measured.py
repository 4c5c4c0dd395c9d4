"""What a run says of single scores: which were measured, and how far the first order is to be believed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import attrib_batch as ab
from attrib_batch.analysis.reliability import FLAGGED
from attrib_batch.errors import OutputError
from attrib_batch.report.drawing.maps import Detail
from attrib_batch.report.page import read_material, render
from attrib_batch.report.sections.cell import build_sections
from attrib_batch.report.sections.verification import place_of
from attrib_batch.storage.store import Store
from tests.support.jobs import TinyJob
from tests.support.near import assert_near, estimated_terms

KEYS = ["pair_id", "component", "layer", "head", "position"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=8)


@pytest.fixture(scope="module")
def run(job: TinyJob) -> ab.Run:
    kinds = ["atp", "atp_hvp", "refined", "exact"]
    return ab.attribute(
        str(job.model), job.pairs, methods=kinds, components=["z", "mlp_out"], out=job.folder / "out", progress=False
    )


def scores(run: ab.Run, method: str) -> pl.DataFrame:
    return run.scores(method=method).select(*KEYS, "score").collect()


def test_measured_scores_are_exact_and_stand_beside_the_estimates(run: ab.Run) -> None:
    measured = run.measured().collect()
    assert measured["method"].unique().to_list() == ["refined"]
    assert 0 < len(measured) < len(scores(run, "refined"))
    assert set(measured["component"].cast(pl.String)) == {"z", "mlp_out"}
    for column, method in (("score", "exact"), ("estimate", "atp")):
        both = measured.join(scores(run, method), on=KEYS, nulls_equal=True, suffix="_there", maintain_order="left")
        assert len(both) == len(measured)
        terms = estimated_terms(scores(run, "exact")["score"].to_numpy(), scores(run, "atp")["score"].to_numpy())
        assert_near(both[column], both["score_there"], terms)
    assert not run.measured(method="exact").collect().height


def test_scores_that_were_not_measured_are_those_of_atp(run: ab.Run) -> None:
    rest = scores(run, "refined").join(run.measured().collect(), on=KEYS, how="anti", nulls_equal=True)
    both = rest.join(scores(run, "atp"), on=KEYS, nulls_equal=True, suffix="_atp", maintain_order="left")
    assert_near(both["score"], both["score_atp"], estimated_terms(both["score_atp"].to_numpy()))


def test_unreliability_is_the_second_order_over_the_first(run: ab.Run) -> None:
    found = run.reliability().collect().sort(KEYS)
    first, second = (scores(run, method).sort(KEYS)["score"].cast(pl.Float64) for method in ("atp", "atp_hvp"))
    assert len(found) == len(first)
    apart = (first != 0) | (second != 0)
    assert found["unreliability"].is_null().equals(~apart)
    expected = ((second - first).abs() / first.abs()).filter(apart)
    assert found["unreliability"].filter(apart).to_list() == expected.to_list()
    assert expected.max() > 0.1, "the second order is not nothing"


def test_a_run_without_a_second_order_says_what_is_missing(job: TinyJob, tmp_path: Path) -> None:
    run = ab.attribute(str(job.model), job.pairs, limit=2, out=tmp_path, progress=False)
    assert not run.measured().collect().height
    with pytest.raises(OutputError, match="add a method of kind atp_hvp to the job"):
        run.reliability()


def test_the_report_shows_what_other_methods_say_of_heads_that_mislead(run: ab.Run) -> None:
    run.verify(8)
    material = read_material(Store.parse(run.path))
    sections = {section.cell.method: section for section in build_sections(material, Detail.FULL)}
    verified = sections["atp"].verification
    assert verified is not None
    place = place_of(verified.data)
    means = {method: run.heads(method=method).filter(place) for method in ("atp", "refined", "atp_hvp")}
    n_rows = 0
    for component in verified.components:
        for row in component.disagreements:
            mine = (
                (pl.col("component") == component.name)
                & (pl.col("layer") == row.layer)
                & pl.col("head").eq_missing(row.head)
            )
            first, refined, second = (of.filter(mine)["mean"].item() for of in means.values())
            assert row.refined == refined
            assert row.unreliability == abs(second - first) / abs(first)
            assert row.flagged == (row.unreliability >= FLAGGED)
            n_rows += 1
    assert n_rows
    other = sections["refined"].verification
    assert other is not None
    assert not any(component.has_refined or component.has_flags for component in other.components)
    page = render(material)
    for heading in ("second order ÷ first", "“Refined” is the mean over all pairs"):
        assert heading in page
