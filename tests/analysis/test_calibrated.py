"""Calibrated means, beside regressions unit by unit, and which pairs count as a random sample."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

import attrib_batch as ab
from attrib_batch.analysis import Summary, read_summary, summarize
from attrib_batch.analysis.statistics.calibration import Everything, Sampled, calibrate
from attrib_batch.analysis.summary import summary_is_current
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from attrib_batch.tables.sampling import in_random_order, pairs_by_unit
from benchmarks.calibration import RELATIONS, simulate
from tests.support.synthetic_run import Pair, write_chunk, write_run
from tests.support.synthetic_verification import write_exact, write_measurement, write_sampled_run

CELL, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "second")
SEED = 1
COLUMNS = ["calibrated_mean", "calibrated_low", "calibrated_high", "measured_pairs", "effective_pairs"]


def pairs_of(n: int = 40, *, seed: int = 5, first_difference: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Estimates and exact scores of pairs in groups of one to three; every fourth without the role A."""
    rng = np.random.default_rng(seed)
    estimates, exact = [], []
    for index in range(n):
        truth = rng.normal(0.3, 1.0, (2, 2, 4))
        truth[..., :first_difference] = 0
        near = 0.5 * truth + (truth != 0) * rng.normal(0.1, 0.2, truth.shape)
        roles = {0: "A", 1: "A", 3: "end"} if index % 4 else {3: "end"}
        group = index // 3 if index % 5 else None
        for scores, into in ((near, estimates), (truth, exact)):
            # In float32, as they are stored.
            stored = scores.astype(np.float32).astype(np.float64)
            into.append(Pair(3 * index, {"z": stored}, roles, group=group, first_difference=first_difference))
    return estimates, exact


def at(pair: Pair, place: str) -> np.ndarray | None:
    """A pair's value of every head at a place."""
    scores = pair.scores["z"]
    if place == "last":
        return scores[..., -1]
    positions = range(scores.shape[-1]) if place == "all" else [p for p, role in pair.roles.items() if role == place]
    return scores[..., list(positions)].sum(-1) if positions else None


def expected(
    estimates: list[Pair], exact: list[Pair], drawn: list[int], place: str, at_head: tuple[int, int]
) -> tuple[float, float, float, int, float]:
    """The same numbers with a regression for every unit, through the deviations of whole units."""
    truth = {pair.pair_id: at(pair, place) for pair in exact}
    units: dict[tuple[object, bool], list[tuple[float, float]]] = {}
    for pair in estimates:
        value = at(pair, place)
        if value is not None:
            unit = pair.pair_id if pair.group is None else (pair.group,)
            both = truth[pair.pair_id][at_head], value[at_head]
            units.setdefault((unit, pair.pair_id in drawn), []).append(both)
    sample, rest = ([np.array(found) for (_, of), found in units.items() if of is which] for which in (True, False))
    n, left, g = sum(map(len, sample)), sum(map(len, rest)), len(sample)
    unseen = np.concatenate(rest)[:, 1].mean()
    corrected, weights = [], []
    for index, unit in enumerate(sample):
        others = sample[:index] + sample[index + 1 :]
        means = np.concatenate(others).mean(axis=0)
        deviations = np.array([(other - means).sum(axis=0) for other in others])
        slope = np.linalg.lstsq(deviations[:, 1:], deviations[:, 0], rcond=None)[0][0]
        weights += [slope * left / (n + left)] * len(unit)
        corrected.append(unit[:, 0] - weights[-1] * (unit[:, 1] - unseen))
    mean = np.concatenate(corrected).mean()
    everything = [unit[:, 1] for unit in (*sample, *rest)]
    overall = np.concatenate(everything).mean()

    def robust(residuals: list[np.ndarray]) -> float:
        sums = np.array([unit.sum() for unit in residuals])
        return len(sums) / (len(sums) - 1) * (sums @ sums) / sum(map(len, residuals)) ** 2

    first = robust([unit - mean for unit in corrected])
    second = np.mean(weights) ** 2 * robust([unit - overall for unit in everything]) * (n + left) / left
    freedom = (first + second) ** 2 / (first**2 / (g - 1) + second**2 / (len(rest) - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(first + second)
    alone = robust([unit[:, 0] - np.concatenate(sample)[:, 0].mean() for unit in sample])
    return mean, mean - half, mean + half, n, min(n * alone / (first + second), n + left)


def heads_of(out: Path) -> pl.DataFrame:
    summarize(out)
    return read_summary(out).heads


@pytest.mark.parametrize("first_difference", [0, 2])
def test_calibrated_means_are_those_of_a_regression_for_every_unit(tmp_path: Path, first_difference: int) -> None:
    estimates, exact = pairs_of(first_difference=first_difference)
    drawn = write_sampled_run(tmp_path, {CELL: estimates}, exact, cuts=(7, 20))
    heads = heads_of(tmp_path)
    assert not heads.filter(pl.col("calibrated_mean").is_null()).height
    for row in heads.iter_rows(named=True):
        place = row["role"] or row["scope"]
        if place == "A" and first_difference:
            assert [row[name] for name in COLUMNS[:3]] == [0, 0, 0], "before the first difference nothing has an effect"
            assert row["effective_pairs"] is None
            continue
        known = expected(estimates, exact, drawn, place, (row["layer"], row["head"]))
        np.testing.assert_allclose([row[name] for name in COLUMNS], known, rtol=1e-9)


def test_magnitudes_are_calibrated_to_mean_absolute_effects(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    magnitudes = [replace(pair, scores={"z": np.abs(pair.scores["z"])}) for pair in estimates]
    absolute = [replace(pair, scores={"z": np.abs(pair.scores["z"])}) for pair in exact]
    write_sampled_run(tmp_path / "stars", {CELL: magnitudes}, exact, method={"kind": "atp_star"})
    write_sampled_run(tmp_path / "absolute", {CELL: magnitudes}, absolute)
    of_stars, of_absolute = (heads_of(tmp_path / name).select(COLUMNS) for name in ("stars", "absolute"))
    assert of_stars.equals(of_absolute)
    assert of_stars["calibrated_mean"].min() > 0  # type: ignore[operator]


def test_with_everything_measured_it_is_the_mean_of_the_exact_effects(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    write_sampled_run(tmp_path, {CELL: estimates}, exact, n_units=40)
    row = heads_of(tmp_path).filter(scope="last", layer=1, head=0).row(0, named=True)
    values = [pair.scores["z"][1, 0, -1] for pair in exact]
    assert row["calibrated_mean"] == pytest.approx(np.mean(values), rel=1e-9)
    assert row["measured_pairs"] == row["effective_pairs"] == len(exact)


def test_places_that_were_not_measured_whole_have_no_calibrated_mean(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    write_sampled_run(tmp_path, {CELL: estimates}, exact, at="last")
    known = heads_of(tmp_path).filter(pl.col("calibrated_mean").is_not_null())
    assert known.select("scope", "role").unique().sort("scope").rows() == [("last", None), ("role", "end")]


def test_a_pair_that_could_not_be_measured_is_left_out(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    drawn = write_sampled_run(tmp_path, {CELL: estimates}, exact)
    lost = next(pair.pair_id for pair in exact if pair.pair_id in drawn and pair.group is None)
    write_measurement(tmp_path, CELL, [pair for pair in exact if pair.pair_id in drawn], failed=[lost])
    rows = heads_of(tmp_path).filter(scope="last")
    assert rows["measured_pairs"].to_list() == [len(drawn) - 1] * len(rows)
    kept = [pair_id for pair_id in drawn if pair_id != lost]
    known = expected(estimates, exact, kept, "last", (0, 1))
    np.testing.assert_allclose(rows.filter(layer=0, head=1).select(COLUMNS).row(0), known, rtol=1e-9)


def test_a_run_gives_them_with_its_strongest_heads(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    write_sampled_run(tmp_path, {CELL: estimates}, exact)
    top = ab.open_run(tmp_path).top(2, at="end")
    known = heads_of(tmp_path).filter(role="end")
    assert top.select("layer", "head", *COLUMNS).rows() == (
        known.sort(pl.col("mean").abs(), descending=True).head(2).select("layer", "head", *COLUMNS).rows()
    )
    assert top["calibrated_mean"].null_count() == 0


def nothing_calibrated(out: Path) -> bool:
    return heads_of(out).select(COLUMNS).null_count().row(0) == (len(heads_of(out)),) * len(COLUMNS)


def test_an_unfinished_measurement_calibrates_nothing(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    drawn = write_sampled_run(tmp_path, {CELL: estimates}, exact)
    [part] = (tmp_path / "verification/scores").rglob("*.parquet")
    part.rename(part.with_name(f"part-000000000-{len(drawn) - 1:09d}.parquet"))
    assert nothing_calibrated(tmp_path)


def test_too_few_units_calibrate_nothing(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    write_sampled_run(tmp_path, {CELL: estimates}, exact, n_units=7)
    assert nothing_calibrated(tmp_path)


def test_a_sample_of_an_earlier_release_calibrates_nothing(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    write_run(tmp_path, {CELL: estimates})
    write_exact(tmp_path, CELL, exact[:20])
    assert nothing_calibrated(tmp_path)


def test_pairs_that_were_scored_later_end_the_random_sample_where_they_stand_in_the_order(tmp_path: Path) -> None:
    estimates, exact = pairs_of(66)
    drawn = write_sampled_run(tmp_path, {CELL: estimates[:60]}, exact[:60], n_units=25, seed=SEED)
    assert heads_of(tmp_path).filter(scope="last")["measured_pairs"].unique().to_list() == [len(drawn)]
    write_chunk(tmp_path, Chunk(CELL, 60, 66), estimates[60:])
    rows = heads_of(tmp_path).filter(scope="last")
    count = rows["measured_pairs"].unique().to_list()
    # The order of all 120, up to the first unit that has a new pair.

    units = pairs_by_unit({pair.pair_id: pair.group for pair in exact})
    order = in_random_order(units, SEED)
    end = next(index for index, unit in enumerate(order) if not units[unit] <= set(drawn))
    first = [pair_id for unit in order[:end] for pair_id in units[unit]]
    assert end >= 8
    assert len(first) < len(drawn)
    assert count == [len(first)]
    known = expected(estimates, exact, first, "last", (1, 1))
    np.testing.assert_allclose(rows.filter(layer=1, head=1).select(COLUMNS).row(0), known, rtol=1e-9)


def test_pairs_that_another_method_did_not_score_were_not_drawn_from(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    both = [pair for pair in estimates if pair.pair_id % 2]
    cells = {CELL: estimates, OTHER: both}
    drawn = write_sampled_run(tmp_path, cells, [pair for pair in exact if pair.pair_id % 2])
    rows = heads_of(tmp_path).filter(scope="last", layer=0, head=0)
    assert rows["measured_pairs"].to_list() == [len(drawn)] * 2


def test_a_method_that_has_scored_some_pairs_yet_takes_none_of_the_sample_away(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    drawn = write_sampled_run(tmp_path, {CELL: estimates, OTHER: estimates}, exact, cuts=(20,))
    before = heads_of(tmp_path).filter(method="atp")
    assert before["measured_pairs"].max() == len(drawn)
    (tmp_path / "scores" / OTHER.partition / "part-000000020-000000040.parquet").unlink()
    assert heads_of(tmp_path).filter(method="atp").equals(before)
    (tmp_path / "scores" / OTHER.partition / "part-000000000-000000020.parquet").unlink()
    assert heads_of(tmp_path).filter(method="atp").equals(before)


def test_an_older_summary_has_no_calibrated_means_and_exact_scores_make_it_old(tmp_path: Path) -> None:
    estimates, exact = pairs_of()
    write_run(tmp_path, {CELL: estimates})
    found = summarize(tmp_path)
    pl.read_parquet(found.heads).drop(COLUMNS).write_parquet(found.heads)
    assert isinstance(read_summary(tmp_path), Summary)
    assert read_summary(tmp_path).heads.select(COLUMNS).null_count().row(0) == (len(read_summary(tmp_path).heads),) * 5
    assert summary_is_current(Store(tmp_path))
    write_exact(tmp_path, CELL, exact)
    assert not summary_is_current(Store(tmp_path))


def test_estimates_that_do_not_vary_leave_the_sample_as_it_is() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(20, 1))
    flat = np.full((20, 1), 0.25)
    found = calibrate(Sampled(np.ones(20), exact, flat), Everything(200, 200, flat[0], np.zeros(1)))
    assert found is not None
    half = stats.t.ppf(0.975, 19) * exact.std(ddof=1) / math.sqrt(20)
    np.testing.assert_allclose([found.mean[0], found.high[0] - found.low[0]], [exact.mean(), 2 * half], rtol=1e-9)
    assert found.effective_pairs == pytest.approx(20)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_intervals_hold_the_truth_as_often_as_they_say(relation: object) -> None:
    """8,000 samples: a share of 0.95 has a standard error of 0.0024."""
    found = simulate(relation, n=64, n_all=400, samples=8_000)  # type: ignore[arg-type]
    assert 0.94 <= found.covered <= 0.965
    assert found.width < 1.02
