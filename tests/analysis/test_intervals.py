"""Intervals, p-values and false discoveries, beside loops over resamples and scipy's own functions."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

from attrib_batch.analysis import Summary, read_summary, summarize
from attrib_batch.analysis.statistics import intervals, units
from attrib_batch.analysis.statistics.resampling import draw_counts
from attrib_batch.spec import Cell
from benchmarks.coverage import DISTRIBUTIONS, simulate
from tests.support.synthetic_run import Pair, write_run

CELL = Cell("gpt2", "ioi", "atp")
INTERVALS = ("low", "high", "low_normalized", "high_normalized")


def pairs_of(groups: list[int | None], *, seed: int = 3, gap: float = 4.0) -> list[Pair]:
    """Pairs of two lengths, every fifth without the role A; scores are skewed and follow their gaps."""
    rng = np.random.default_rng(seed)
    pairs = []
    for index, group in enumerate(groups):
        own = rng.normal(gap, 1.5)
        scores = rng.exponential(size=(2, 2, 3 + index % 2)) + 0.3 * own
        roles = {0: "A", 1: "A"} if index % 5 else {}
        pairs.append(Pair(50 - index, {"z": scores}, roles, own, 0.0, group))
    return pairs


GROUPS: list[int | None] = [1, 1, 2, 2, 3, None, None, 4, 4, 4, 5, 6, 6, None, 7, 8, 9, None, 2, 10]


def summary_of(out: Path, pairs: list[Pair], **options: object) -> Summary:
    summarize(write_run(out, {CELL: pairs}, **options))  # type: ignore[arg-type]
    return read_summary(out)


def units_of(pairs: list[Pair], value: object) -> list[list[tuple[float | None, float]]]:
    """Of each unit, the value (None without one) and the gap of each pair; units come in the order of their ids."""
    found: dict[object, list[tuple[float | None, float]]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: pair.pair_id):
        unit = ("pair", pair.pair_id) if pair.group is None else ("group", pair.group)
        found[unit].append((value(pair), pair.clean - pair.corrupted))  # type: ignore[operator]
    return list(found.values())


def estimate(sample: list[list[tuple[float | None, float]]], ratio: float) -> tuple[float, float, float, float]:
    """Mean, its error, the mean less a ratio times the mean gap, and its error; errors from residuals of units."""
    values = [[value for value, _ in unit if value is not None] for unit in sample]
    gaps = [[gap for _, gap in unit] for unit in sample]
    n, n_all, g = sum(map(len, values)), sum(map(len, gaps)), sum(bool(unit) for unit in values)
    mean, gap = sum(map(sum, values)) / n, sum(map(sum, gaps)) / n_all
    of_mean = [sum(value - mean for value in unit) / n for unit in values]
    of_gap = [sum(each - gap for each in unit) / n_all for unit in gaps]
    correct = g / (g - 1)
    correct_gap = len(sample) / (len(sample) - 1)
    var = correct * math.fsum(d * d for d in of_mean)
    var_gap = correct_gap * math.fsum(e * e for e in of_gap)
    cov = correct * math.fsum(d * e for d, e in zip(of_mean, of_gap, strict=True))
    return mean, math.sqrt(var), mean - ratio * gap, math.sqrt(var + ratio**2 * var_gap - 2 * ratio * cov)


def bootstrap_t(sample: list[list[tuple[float | None, float]]]) -> tuple[float, float, float, float]:
    """Both bootstrap-t intervals, resample by resample."""
    gap = np.mean([gap for unit in sample for _, gap in unit])
    mean, sem, _, _ = estimate(sample, 0.0)
    ratio = mean / gap
    _, _, _, error = estimate(sample, ratio)
    ts, rs = [], []
    for counts in draw_counts(len(sample), units.RESAMPLES, 0)[1:].astype(int):
        drawn = [unit for unit, count in zip(sample, counts, strict=True) for _ in range(count)]
        resampled, own, linear, own_linear = estimate(drawn, ratio)
        ts.append((resampled - mean) / own)
        rs.append(linear / own_linear * np.sign(gap))
    (t_low, t_high), (r_low, r_high) = (np.quantile(found, [0.025, 0.975]) for found in (ts, rs))
    scale = error / abs(gap)
    return mean - t_high * sem, mean - t_low * sem, ratio - r_high * scale, ratio - r_low * scale


@pytest.mark.parametrize(("cuts", "moments"), [((), False), ((3, 9), True)])
@pytest.mark.parametrize("gap", [4.0, -4.0])
def test_intervals_of_few_units_are_those_of_a_loop_over_resamples(
    tmp_path: Path, gap: float, cuts: tuple[int, ...], *, moments: bool
) -> None:
    pairs = pairs_of(GROUPS, gap=gap)
    summary = summary_of(tmp_path, pairs, cuts=cuts, moments=moments)

    def stored(pair: Pair) -> np.ndarray:
        return pair.scores["z"].astype(np.float32).astype(np.float64)

    cases = [
        (summary.heads, {"scope": "last", "layer": 1, "head": 0}, lambda pair: stored(pair)[1, 0, -1]),
        (summary.heads, {"role": "A", "layer": 0, "head": 1}, lambda p: stored(p)[0, 1, :2].sum() if p.roles else None),
        (
            summary.positions,
            {"scope": "position", "layer": 1, "position": 3},
            lambda pair: stored(pair)[1, :, 3].sum() if pair.n_tokens > 3 else None,
        ),
    ]
    for frame, select, value in cases:
        [row] = frame.filter(**select).iter_rows(named=True)
        expected = bootstrap_t(units_of(pairs, value))
        assert [row[name] for name in INTERVALS] == pytest.approx(expected, rel=1e-8), select


def test_a_cell_of_many_units_has_t_intervals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair(index, {"z": rng.exponential(size=(1, 2, 1))}, clean=rng.normal(3, 1)) for index in range(200)]
    for row in summary_of(tmp_path, pairs).heads.filter(scope="last").iter_rows(named=True):
        values = [float(np.float32(pair.scores["z"][0, row["head"], -1])) for pair in pairs]
        low, high = stats.t.interval(0.95, 199, np.mean(values), stats.sem(values))
        assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-9)
        half = row["sem_normalized"] * stats.t.ppf(0.975, 199)
        assert row["high_normalized"] - row["mean_normalized"] == pytest.approx(half, rel=1e-9)
        assert row["p_value"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6)


def test_fewer_than_eight_units_have_t_intervals_and_one_has_none(tmp_path: Path) -> None:
    pairs = pairs_of([1, 1, 2, 3, None, None, 3])
    row = summary_of(tmp_path / "few", pairs).heads.filter(scope="last").row(0, named=True)
    half = row["sem"] * stats.t.ppf(0.975, row["n_groups"] - 1)
    assert (row["low"], row["high"]) == pytest.approx((row["mean"] - half, row["mean"] + half))
    one = summary_of(tmp_path / "one", pairs_of([1, 1])).heads
    for name in (*INTERVALS, "p_value", "q_bh", "q_by", "survives"):
        assert one.get_column(name).null_count() == len(one), name


def test_a_role_of_few_units_has_t_intervals_in_a_cell_of_more(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = [
        Pair(index, {"z": rng.exponential(size=(1, 1, 2))}, {0: "A"} if index < 7 else {0: "B"}) for index in range(30)
    ]
    heads = summary_of(tmp_path, pairs).heads
    symmetric = heads.select("role", even=((pl.col("high") + pl.col("low")) / 2 - pl.col("mean")).abs() < 1e-12)
    assert dict(symmetric.drop_nulls().iter_rows()) == {"A": True, "B": False}


def test_scores_that_are_almost_all_0_have_t_intervals(tmp_path: Path) -> None:
    """Of 20 units one has a score: a third of all resamples have none, and no spread."""
    pairs = [Pair(index, {"z": np.full((1, 1, 1), float(index == 0))}) for index in range(20)]
    row = summary_of(tmp_path, pairs).heads.row(0, named=True)
    assert row["high"] - row["mean"] == pytest.approx(row["sem"] * stats.t.ppf(0.975, 19))


def test_intervals_do_not_depend_on_how_pairs_are_cut(tmp_path: Path) -> None:
    pairs = pairs_of(GROUPS)
    whole, cut = (
        summary_of(tmp_path / name, pairs, cuts=cuts, moments=moments)
        for name, cuts, moments in (("whole", (), False), ("cut", (1, 2, 7, 13), True))
    )
    assert_frame_equal(whole.heads, cut.heads, abs_tol=1e-9)
    assert_frame_equal(whole.positions, cut.positions, abs_tol=1e-9)
    assert_frame_equal(summary_of(tmp_path / "again", pairs).heads, whole.heads, check_exact=True)


def test_a_long_table_of_few_units_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_MOST_ROWS", 10)
    row = summary_of(tmp_path, pairs_of(GROUPS)).heads.row(0, named=True)
    half = row["sem"] * stats.t.ppf(0.975, row["n_groups"] - 1)
    assert row["high"] - row["mean"] == pytest.approx(half)


def test_strata_have_t_intervals(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pairs = [Pair(index, {"z": rng.normal(size=(1, 1, 1))}, template=f"t{index % 2}") for index in range(20)]
    for row in summary_of(tmp_path, pairs).strata.filter(scope="last").iter_rows(named=True):
        values = [float(np.float32(pair.scores["z"].item())) for pair in pairs if pair.template == row["stratum"]]
        low, high = stats.t.interval(0.95, 9, np.mean(values), stats.sem(values))
        assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-9)


def mixed_run(out: Path, n_pairs: int) -> Summary:
    """Heads with an effect, heads without, and a role before the first difference, where every score is 0."""
    rng = np.random.default_rng(5)
    effect = np.zeros((4, 5))
    effect[1, 2], effect[3, 0], effect[2, 2] = 2.0, -0.9, 0.45
    pairs = []
    for index in range(n_pairs):
        scores = rng.normal(effect[..., None], 1.0, size=(4, 5, 2))
        scores[..., 0] = 0.0
        pairs.append(Pair(index, {"z": scores}, {0: "start", 1: "end"}, clean=rng.normal(3, 1)))
    return summary_of(out, pairs)


@pytest.mark.parametrize("n_pairs", [30, 250])
def test_p_values_agree_with_intervals_and_adjusted_ones_with_scipy(tmp_path: Path, n_pairs: int) -> None:
    heads = mixed_run(tmp_path, n_pairs).heads
    tested = heads.filter(pl.col("role").is_null() | (pl.col("role") == "end"))
    outside = tested.select((pl.col("low") > 0) | (pl.col("high") < 0)).to_series()
    assert ((tested["p_value"] < 0.05) == outside).all()
    assert outside.any()
    assert not outside.all()
    for _, family in tested.group_by("scope", "role"):
        p = family["p_value"].to_numpy()
        assert len(p) == 20
        np.testing.assert_allclose(family["q_bh"], step_up(p), rtol=1e-12)
        np.testing.assert_allclose(
            family["q_by"], step_up(p, sum(1 / rank for rank in range(1, len(p) + 1))), rtol=1e-12
        )
        assert (family["survives"] == (family["q_bh"] < 0.05)).all()
    last = tested.filter(pl.col("survives"), scope="last").select("layer", "head").rows()
    assert {(1, 2), (3, 0)} <= set(last)


def test_scores_that_are_0_by_construction_are_not_tested(tmp_path: Path) -> None:
    summary = mixed_run(tmp_path, 30)
    start = summary.heads.filter(role="start")
    for name in ("p_value", "q_bh", "q_by", "survives"):
        assert start.get_column(name).null_count() == len(start)
    assert start.select("low", "high", "low_normalized").unique().rows() == [(0.0, 0.0, 0.0)]
    first = summary.positions.filter(scope="position", position=0)
    second = summary.positions.filter(scope="position", position=1)
    assert first.get_column("q_bh").null_count() == 4
    np.testing.assert_allclose(second["q_bh"], step_up(second["p_value"].to_numpy()), rtol=1e-12)


def test_values_that_are_all_alike_and_not_0_survive(tmp_path: Path) -> None:
    pairs = [Pair(index, {"z": np.full((1, 1, 1), 0.5)}) for index in range(10)]
    row = summary_of(tmp_path, pairs).heads.row(0, named=True)
    assert (row["low"], row["high"], row["p_value"], row["survives"]) == (0.5, 0.5, 0.0, True)


def test_magnitudes_have_intervals_and_no_p_values(tmp_path: Path) -> None:
    pairs = [Pair(index, {"z": np.full((1, 1, 1), 1.0 + index)}) for index in range(10)]
    heads = summary_of(tmp_path, pairs, method={"kind": "atp_star"}).heads
    assert heads.get_column("low").null_count() == 0
    for name in ("p_value", "q_bh", "q_by", "survives"):
        assert heads.get_column(name).null_count() == len(heads)


def test_adjusted_p_values_of_a_case_worked_out_by_hand() -> None:
    rows = pl.DataFrame(
        {
            "component": ["z"] * 6, "scope": ["last"] * 5 + ["all"], "role": [None] * 6,
            "p_value": [0.03, 0.01, None, 0.5, 0.02, 0.04],
        },
        schema_overrides={"role": pl.String},
    )  # fmt: skip
    found = intervals._adjusted(rows)
    # Of four: 0.01 * 4 / 1, 0.02 * 4 / 2, 0.03 * 4 / 3 and 0.5, from the largest down; another scope is another family.
    of_four = np.array([0.04, 0.04, np.nan, 0.5, 0.04])
    np.testing.assert_allclose(found["q_bh"].to_numpy(), [*of_four, 0.04])
    # 1 + 1/2 + 1/3 + 1/4 = 25 / 12
    np.testing.assert_allclose(found["q_by"].to_numpy(), [*np.minimum(of_four * 25 / 12, 1), 0.04])
    assert found["survives"].to_list() == [True, True, None, False, True, True]


def step_up(p_values: np.ndarray, factor: float = 1.0) -> list[float]:
    """Benjamini and Hochberg's adjustment as they define it: the least bound of those at or after a p-value's rank."""
    n = len(p_values)
    ranked = sorted(p_values)
    return [min([1.0, *(factor * n / rank * q for rank, q in enumerate(ranked, 1) if q >= p)]) for p in p_values]


@pytest.mark.slow
@pytest.mark.parametrize("scores", DISTRIBUTIONS, ids=lambda scores: scores.name)
@pytest.mark.parametrize(("n_units", "samples"), [(20, 1000), (100, 200), (1000, 1000)])
def test_intervals_cover_what_they_say(scores: object, n_units: int, samples: int) -> None:
    """The longer table is in `benchmarks/RESULTS.md`."""
    found = simulate(scores, n_units, samples, follow=0.1, seed=7, resamples=999)  # type: ignore[arg-type]
    error = math.sqrt(0.95 * 0.05 / samples)
    for share in (found.mean, found.ratio, 1 - found.rejected):
        assert 0.93 - 2 * error < share < 0.97 + 2 * error
    if "zeros" in scores.name and n_units == 20:  # type: ignore[attr-defined]
        assert found.mean_t < 0.93
