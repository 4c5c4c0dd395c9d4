from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from scipy import stats

from attrib_batch.analysis import (
    mean_effects,
    read_agreement,
    read_verified,
    strongest_disagreements,
    verified_cells,
    write_agreement,
)
from attrib_batch.analysis.statistics.resampling import draw_counts, interval
from attrib_batch.analysis.verification.agreement import AGREEMENT
from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell
from tests.support.synthetic_run import Pair, write_run
from tests.support.synthetic_verification import estimated_from, write_exact, write_verified_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CELL, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "second")

Scored = dict[str, tuple[float | None, float | None, float | None]]


def agreement(
    out: Path,
    estimates: Sequence[Pair],
    exact: Sequence[Pair],
    *,
    kind: str = "atp",
    component: str = "z",
    seed: int = 0,
) -> Scored:
    """What is written for one component of one verified cell."""
    write_run(out, {CELL: estimates}, method={"kind": kind})
    write_exact(out, CELL, exact)
    write_agreement(out, seed=seed, resamples=300)
    rows = read_agreement(out).filter(pl.col("component") == component)
    return {row["statistic"]: (row["value"], row["low"], row["high"]) for row in rows.iter_rows(named=True)}


def values(scored: Scored) -> dict[str, float | None]:
    return {name: value for name, (value, _, _) in scored.items()}


def single(pair_id: int, scores: Sequence[float], **more: object) -> Pair:
    """A pair with one layer, one head per score and one position."""
    return Pair(pair_id, {"z": np.array(scores)[None, :, None]}, **more)


def random_pairs(n: int, *, shape: tuple[int, ...] = (3, 5, 4), first: int = 0, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for index in range(n):
        scores = rng.standard_t(3, shape)
        scores[..., :first] = 0
        component = "z" if len(shape) == 3 else "mlp_out"
        pairs.append(Pair(index, {component: scores}, {shape[-1] - 1: "end"}, group=index // 2, first_difference=first))
    return pairs


def stored(pairs: Sequence[Pair], component: str = "z") -> np.ndarray:
    """Scores as they are in the tables, (pair, layer, head, position)."""
    return np.stack([pair.scores[component] for pair in pairs]).astype(np.float32).astype(np.float64)


def test_the_table_has_the_columns_that_others_rely_on(tmp_path: Path) -> None:
    write_verified_run(tmp_path, {CELL: {}, OTHER: {"noise": 0.1}})
    path = write_agreement(tmp_path, seed=0, resamples=20)
    assert path == tmp_path / "verification" / "agreement.parquet"
    table = pl.read_parquet(path)
    assert table.schema == AGREEMENT
    assert list(AGREEMENT) == ["model", "dataset", "method", "component", "statistic", "value", "low", "high"]
    assert set(table.get_column("method")) == {"atp", "second"}
    assert set(table.get_column("component")) == {"z", "mlp_out"}
    assert not table.select("model", "dataset", "method", "component", "statistic").is_duplicated().any()
    for scope in ("end", "all"):
        for name in ("pearson", "spearman", "top_10_recall", "sign_agreement", "mean_absolute_error", "map_pearson"):
            assert f"{name}@{scope}" in set(table.get_column("statistic"))


def test_figures_worked_out_by_hand(tmp_path: Path) -> None:
    exact = [single(0, [1, 2, 3, -0.004]), single(1, [-1, 0, 1, 4])]
    estimates = [single(0, [1, 2, 4, 1]), single(1, [1, 0, 2, 4])]
    found = values(agreement(tmp_path, estimates, exact))
    # Scores of size above 1% of 4: six, of which -1 is estimated as +1; -0.004 and 0 do not count.
    assert found["sign_agreement@all"] == pytest.approx(5 / 6)
    assert found["mean_absolute_error@all"] == pytest.approx((1 + 1.004 + 2 + 1) / 8)
    assert found["mean_absolute_exact@all"] == pytest.approx(12.004 / 8)
    # Mean maps: exact (0, 1, 2, 1.998), estimate (1, 1, 3, 2.5).
    assert found["map_sign_agreement@all"] == 1
    assert found["map_spearman@all"] == pytest.approx(stats.spearmanr([0, 1, 2, 1.998], [1, 1, 3, 2.5]).statistic)
    assert found["top_10_recall@all"] is None


def test_figures_are_those_of_scipy(tmp_path: Path) -> None:
    exact = random_pairs(12, first=1)
    estimates = estimated_from(exact, noise=1.0, bias=2.0)
    found = values(agreement(tmp_path, estimates, exact))
    x, y = stored(exact)[..., 1:], stored(estimates)[..., 1:]
    for scope, at in (("all", slice(None)), ("end", slice(-1, None))):
        xs, ys = x[..., at], y[..., at]
        flat = xs.ravel(), ys.ravel()
        assert found[f"pearson@{scope}"] == pytest.approx(stats.pearsonr(*flat).statistic)
        assert found[f"spearman@{scope}"] == pytest.approx(stats.spearmanr(*flat).statistic)
        assert found[f"slope@{scope}"] == pytest.approx(stats.linregress(*flat).slope)
        assert found[f"mean_absolute_error@{scope}"] == pytest.approx(np.abs(ys - xs).mean())
        maps = xs.sum(-1).mean(0).ravel(), ys.sum(-1).mean(0).ravel()
        assert found[f"map_pearson@{scope}"] == pytest.approx(stats.pearsonr(*maps).statistic)
        assert found[f"map_spearman@{scope}"] == pytest.approx(stats.spearmanr(*maps).statistic)
        top = [set(np.argsort(-np.abs(values))[:10]) for values in maps]
        assert found[f"top_10_recall@{scope}"] == pytest.approx(len(top[0] & top[1]) / 10)


def test_components_without_heads_are_mapped_by_layer_and_position(tmp_path: Path) -> None:
    exact = random_pairs(8, shape=(3, 6), first=2)
    estimates = estimated_from(exact, noise=1.0)
    found = values(agreement(tmp_path, estimates, exact, component="mlp_out"))
    x, y = (stored(pairs, "mlp_out").mean(0)[:, 2:] for pairs in (exact, estimates))
    assert found["map_pearson@all"] == pytest.approx(stats.pearsonr(x.ravel(), y.ravel()).statistic)
    assert found["map_pearson@end"] == pytest.approx(stats.pearsonr(x[:, -1], y[:, -1]).statistic)
    assert found["top_10_recall@all"] is not None
    assert found["top_10_recall@end"] is None


def test_a_pair_without_a_position_counts_as_nothing_there(tmp_path: Path) -> None:
    exact = [Pair(0, {"mlp_out": np.array([[1.0, 2.0, 6.0]])}), Pair(1, {"mlp_out": np.array([[3.0, 4.0]])})]
    estimates = [Pair(0, {"mlp_out": np.array([[1.0, 1.0, 3.0]])}), Pair(1, {"mlp_out": np.array([[2.0, 3.0]])})]
    found = values(agreement(tmp_path, estimates, exact, component="mlp_out"))
    assert found["map_pearson@all"] == pytest.approx(stats.pearsonr([2, 3, 3], [1.5, 2, 1.5]).statistic)


def test_the_shared_prefix_does_not_flatter(tmp_path: Path) -> None:
    exact = random_pairs(6, first=0, shape=(2, 3, 2))
    long = [
        Pair(pair.pair_id, {"z": np.pad(pair.scores["z"], [(0, 0), (0, 0), (50, 0)])}, first_difference=50)
        for pair in exact
    ]
    short = [Pair(pair.pair_id, pair.scores) for pair in exact]
    without = agreement(tmp_path / "short", estimated_from(short, noise=2.0, seed=5), short)
    estimates = [
        Pair(pair.pair_id, {"z": np.pad(pair.scores["z"], [(0, 0), (0, 0), (50, 0)])}, first_difference=50)
        for pair in estimated_from(short, noise=2.0, seed=5)
    ]
    padded = agreement(tmp_path / "long", estimates, long)
    assert padded.keys() == without.keys()
    for name, numbers in without.items():
        assert padded[name] == pytest.approx(numbers), name


def test_magnitudes_are_compared_with_absolute_scores(tmp_path: Path) -> None:
    exact = random_pairs(6)
    estimates = [Pair(p.pair_id, {"z": np.abs(p.scores["z"])}, p.roles, group=p.group) for p in exact]
    found = values(agreement(tmp_path / "star", estimates, exact, kind="atp_star"))
    assert found["pearson@all"] == found["map_pearson@end"] == pytest.approx(1)
    assert found["mean_absolute_error@all"] == 0
    assert found["sign_agreement@all"] is None
    assert found["map_sign_agreement@end"] is None
    assert values(agreement(tmp_path / "atp", estimates, exact))["pearson@all"] < 0.5


def test_the_last_position_stands_in_for_the_role_end(tmp_path: Path) -> None:
    exact = [Pair(i, {"z": np.arange(6.0).reshape(1, 2, 3) * (i + 1)}) for i in range(3)]
    estimates = [Pair(i, {"z": np.arange(6.0).reshape(1, 2, 3) * (i + 2)}) for i in range(3)]
    found = agreement(tmp_path, estimates, exact)
    assert found["mean_absolute_error@end"][0] == pytest.approx((2 + 5) / 2)
    assert read_verified(tmp_path, CELL).at == "the last position"
    role = [Pair(p.pair_id, p.scores, {1: "end"}) for p in estimates]
    assert agreement(tmp_path, role, exact)["mean_absolute_error@end"][0] == pytest.approx((1 + 4) / 2)
    assert read_verified(tmp_path, CELL).at == "“end”"


def test_only_the_verified_pairs_count(tmp_path: Path) -> None:
    exact = random_pairs(6)
    estimates = estimated_from(exact, noise=1.0)
    strangers = [Pair(100 + i, {"z": np.full((3, 5, 4), 99.0)}) for i in range(5)]
    alone = agreement(tmp_path / "alone", estimates, exact)
    assert agreement(tmp_path / "among", [*strangers[:2], *estimates, *strangers[2:]], exact) == alone


def test_a_constant_has_no_correlation(tmp_path: Path) -> None:
    exact = random_pairs(4)
    flat = [Pair(p.pair_id, {"z": np.full((3, 5, 4), 0.1)}, p.roles, group=p.group) for p in exact]
    found = agreement(tmp_path, flat, exact)
    for name in ("pearson", "spearman", "map_pearson", "map_spearman"):
        assert found[f"{name}@all"] == (None, None, None)
    assert found["slope@all"][0] == pytest.approx(0)


def test_correlations_hold_far_from_zero(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = 1e4 + rng.normal(0, 1, (8, 1, 30, 1)).astype(np.float32)
    y = x + rng.normal(0, 1, x.shape).astype(np.float32)
    exact, estimates = ([Pair(i, {"z": pair}) for i, pair in enumerate(of)] for of in (x, y))
    found = values(agreement(tmp_path, estimates, exact))
    want = stats.pearsonr(x.ravel().astype(np.float64), y.ravel().astype(np.float64)).statistic
    assert found["pearson@all"] == pytest.approx(want, rel=1e-11)


def test_the_same_seed_gives_the_same_table(tmp_path: Path) -> None:
    write_verified_run(tmp_path, {CELL: {"noise": 0.5}})
    first = write_agreement(tmp_path, seed=3, resamples=50).read_bytes()
    assert write_agreement(tmp_path, seed=3, resamples=50).read_bytes() == first
    before = read_agreement(tmp_path)
    write_agreement(tmp_path, seed=4, resamples=50)
    after = read_agreement(tmp_path)
    assert after.get_column("value").equals(before.get_column("value"))
    assert not after.get_column("low").equals(before.get_column("low"))


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    exact = random_pairs(9)
    estimates = estimated_from(exact, noise=1.0)
    assert agreement(tmp_path / "a", estimates, exact) == agreement(tmp_path / "b", estimates[::-1], exact[::-1])


def test_pairs_of_a_group_are_resampled_together(tmp_path: Path) -> None:
    exact = random_pairs(8)
    estimates = estimated_from(exact, noise=1.0)

    def twin(pairs: Sequence[Pair], *, group: bool) -> list[Pair]:
        """Every pair twice: it adds nothing that is new."""
        return [
            Pair(2 * p.pair_id + i, p.scores, p.roles, group=p.pair_id if group else None)
            for p in pairs
            for i in (0, 1)
        ]

    def width(name: str, *, group: bool) -> float:
        _, low, high = agreement(tmp_path / name, twin(estimates, group=group), twin(exact, group=group))["pearson@all"]
        return high - low

    once = agreement(
        tmp_path / "once",
        [Pair(p.pair_id, p.scores, p.roles) for p in estimates],
        [Pair(p.pair_id, p.scores) for p in exact],
    )["pearson@all"]
    assert width("grouped", group=True) == pytest.approx(once[2] - once[1])
    assert width("apart", group=False) < 0.85 * width("grouped", group=True)


def test_one_sampling_unit_has_no_interval(tmp_path: Path) -> None:
    exact = [Pair(p.pair_id, p.scores, p.roles, group=7) for p in random_pairs(3)]
    found = agreement(tmp_path, estimated_from(exact, noise=1.0), exact)
    assert all((low, high) == (None, None) for _, low, high in found.values())
    assert found["pearson@all"][0] is not None


def test_resampled_sums_are_those_of_drawing_units_again() -> None:
    counts = draw_counts(7, 40, seed=2)
    assert counts.shape == (41, 7)
    np.testing.assert_array_equal(counts[0], 1)
    np.testing.assert_array_equal(counts.sum(1), 7)
    assert interval(np.array([1.0, np.nan, 2.0, 2.0])) == (1.0, 2.0, 2.0)
    assert interval(np.array([np.nan, 1.0])) == (None, None, None)
    assert interval(np.array([1.0])) == (1.0, None, None)


def test_intervals_cover_the_truth() -> None:
    from attrib_batch.analysis.verification.agreement import _correlation

    rng, rho, n_units, per_unit = np.random.default_rng(0), 0.6, 40, 10
    covered = 0
    for seed in range(100):
        shared = rng.normal(0, 1, n_units).repeat(per_unit)
        x = shared + rng.normal(0, 1, n_units * per_unit)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(0, math.sqrt(2), x.shape)
        unit = np.arange(n_units).repeat(per_unit)
        _, low, high = interval(_correlation(unit, x, y, draw_counts(n_units, 400, seed))[0])
        covered += low <= rho <= high
    assert 87 <= covered <= 100


def test_heads_that_mislead_come_first(tmp_path: Path) -> None:
    write_verified_run(tmp_path, {CELL: {"bias": 0.7}, OTHER: {}})
    table = strongest_disagreements(tmp_path, 3)
    assert table.group_by("method", "component").len().get_column("len").to_list() == [3] * 4
    first = table.filter((pl.col("method") == "atp") & (pl.col("component") == "z")).row(0, named=True)
    assert (first["layer"], first["head"]) == (11, 0)
    assert first["difference"] == pytest.approx(0.7, abs=0.05)
    assert first["difference"] == pytest.approx(first["estimate"] - first["exact"])
    assert abs(first["difference"] - 0.7) < first["half_width"] < 0.05
    assert (first["n_pairs"], first["n_groups"]) == (24, 12)


def test_a_difference_comes_with_its_cluster_robust_interval(tmp_path: Path) -> None:
    exact = [single(i, [0.0], group=i // 2) for i in range(4)]
    estimates = [single(i, [value], group=i // 2) for i, value in enumerate([1.0, 1.0, 2.0, 2.0])]
    write_run(tmp_path, {CELL: estimates})
    write_exact(tmp_path, CELL, exact)
    row = mean_effects(read_verified(tmp_path, CELL)).row(0, named=True)
    # Two units with sums of deviations -1 and +1: sem = sqrt(2 * 2) / 4 = 0.5.
    assert row["difference"] == 1.5
    assert row["half_width"] == pytest.approx(0.5 * stats.t.ppf(0.975, 1))


def test_an_uncertain_difference_stands_behind_a_certain_one(tmp_path: Path) -> None:
    noisy = [[5.0, 0.5], [-4.0, 0.5], [3.0, 0.6], [-1.0, 0.6]]
    write_run(tmp_path, {CELL: [single(i, scores) for i, scores in enumerate(noisy)]})
    write_exact(tmp_path, CELL, [single(i, [0.0, 0.0]) for i in range(4)])
    assert mean_effects(read_verified(tmp_path, CELL)).get_column("head").to_list() == [1, 0]


def test_means_are_the_same_to_the_last_digit_every_time(tmp_path: Path) -> None:
    write_verified_run(tmp_path, {CELL: {"noise": 0.5}})
    first = strongest_disagreements(tmp_path, 200)
    assert all(strongest_disagreements(tmp_path, 200).equals(first) for _ in range(10))


def test_a_run_without_verification_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: random_pairs(2)})
    assert verified_cells(tmp_path) == []
    assert strongest_disagreements(tmp_path, 5).is_empty()
    for read in (read_agreement, lambda out: write_agreement(out, seed=0)):
        with pytest.raises(OutputError, match="run attrib-batch verify"):
            read(tmp_path)


def broken(pairs: list[Pair], how: str) -> list[Pair]:
    scores = pairs[1].scores["z"].copy()
    if how == "no estimate":
        return [*pairs, Pair(77, pairs[0].scores)]
    if how == "fewer tokens":
        return [pairs[0], Pair(1, {"z": scores[..., 1:]}), *pairs[2:]]
    if how == "fewer components":
        return [pairs[0], Pair(1, {"q": scores}), *pairs[2:]]
    if how == "twice":
        return [*pairs, pairs[1]]
    scores[0, 1, 2] = np.nan
    return [pairs[0], Pair(1, {"z": scores}), *pairs[2:]]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no estimate", r"60 exact scores have no estimate and 0 .*first: pair_id 77, component z, layer 0, head 0"),
        ("fewer tokens", r"0 exact scores have no estimate and 15 estimates .*position 3\)"),
        ("fewer components", r"60 exact scores have no estimate and 60 estimates"),
        ("twice", r"more than once \(first: pair_id 1, component z"),
        ("nan", r"1 scores in verification/scores/ are NaN or infinite \(first: pair_id 1, .*head 1, position 2\)"),
    ],
)
def test_what_does_not_match_is_refused(tmp_path: Path, how: str, message: str) -> None:
    pairs = random_pairs(4)
    write_run(tmp_path, {CELL: pairs})
    write_exact(tmp_path, CELL, broken(pairs, how))
    with pytest.raises(OutputError, match=message):
        write_agreement(tmp_path, seed=0)


def test_an_estimate_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    pairs = random_pairs(4)
    write_run(tmp_path, {CELL: broken(pairs, "nan")})
    write_exact(tmp_path, CELL, pairs)
    with pytest.raises(OutputError, match="1 scores in scores/ are NaN or infinite"):
        write_agreement(tmp_path, seed=0)
