"""Rank agreement of disjoint sets of chunks, beside means of pairs and scipy's rank correlation."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

import attrib_batch as ab
from attrib_batch.analysis import read_stability, stability_sentence, summarize
from attrib_batch.analysis.statistics import passes
from attrib_batch.analysis.statistics.stability import rank_correlation
from attrib_batch.errors import OutputError
from attrib_batch.spec import Cell
from tests.support.synthetic_run import Pair, write_run

CELL = Cell("gpt2", "ioi", "atp")
N_LAYERS, N_HEADS = 3, 4


def some_pairs(count: int, *, effect: float = 1.0, seed: int = 0) -> list[Pair]:
    """Pairs of two lengths; heads differ by ``effect``, and the noise of one score has a spread of 1."""
    rng = np.random.default_rng(seed)
    means = effect * rng.permutation(N_LAYERS * N_HEADS).reshape(N_LAYERS, N_HEADS, 1)
    pairs = []
    for index in range(count):
        n_tokens = 2 + index % 2
        noise = {"z": rng.normal(size=(N_LAYERS, N_HEADS, n_tokens)), "mlp_out": rng.normal(size=(3, n_tokens))}
        pairs.append(Pair(index, noise | {"z": noise["z"] + means}))
    return pairs


def means_of(pairs: list[Pair], scope: str, component: str = "z") -> np.ndarray:
    values = [pair.scores[component].astype(np.float32).astype(np.float64) for pair in pairs]
    return np.mean([v[..., -1] if scope == "last" else v.sum(axis=-1) for v in values], axis=0).ravel()


def shared(one: np.ndarray, two: np.ndarray, k: int) -> float:
    tops = [set(np.argsort(-np.abs(means))[:k].tolist()) for means in (one, two)]
    return len(tops[0] & tops[1]) / k


def table_of(out: Path, pairs: list[Pair], cuts: tuple[int, ...], *, moments: bool = True) -> pl.DataFrame:
    summarize(write_run(out, {CELL: pairs}, cuts=cuts, moments=moments))
    return read_stability(out)


@pytest.mark.parametrize("moments", [False, True])
def test_two_chunks_are_two_halves(tmp_path: Path, *, moments: bool) -> None:
    pairs = some_pairs(20)
    table = table_of(tmp_path, pairs, (12,), moments=moments)
    assert table.select("component", "scope", "top_k").rows() == [
        ("mlp_out", "all", 1), ("mlp_out", "last", 1), ("z", "all", 5), ("z", "last", 5),
    ]  # fmt: skip
    for row in table.iter_rows(named=True):
        one, two = (means_of(half, row["scope"], row["component"]) for half in (pairs[:12], pairs[12:]))
        overlap = shared(one, two, row["top_k"])
        assert (row["overlap"], row["overlap_low"], row["overlap_high"]) == pytest.approx((overlap,) * 3)
        assert row["spearman"] == pytest.approx(stats.spearmanr(one, two).statistic)
        assert row["n_pairs"] == 10


def test_sets_of_several_chunks_are_disjoint_and_every_split_is_drawn(tmp_path: Path) -> None:
    pairs = some_pairs(24, effect=0.1)
    chunks = [pairs[start : start + 6] for start in range(0, 24, 6)]
    table = table_of(tmp_path, pairs, (6, 12, 18)).filter(component="z", scope="last")
    assert table.select("n_pairs", "top_k").rows() == [(6, 5), (12, 5)]
    for row, size in zip(table.iter_rows(named=True), (1, 2), strict=True):
        overlaps, correlations = [], []
        for first in combinations(range(4), size):
            for second in combinations(sorted(set(range(4)) - set(first)), size):
                one, two = (
                    means_of([pair for index in chosen for pair in chunks[index]], "last") for chosen in (first, second)
                )
                overlaps.append(shared(one, two, 5))
                correlations.append(stats.spearmanr(one, two).statistic)
        # All splits are equally likely; the table has the mean over 100 of them.
        error = np.std(overlaps) / 10
        assert row["overlap"] == pytest.approx(np.mean(overlaps), abs=3 * error + 1e-9)
        assert row["spearman"] == pytest.approx(np.mean(correlations), abs=0.3 * np.std(correlations) + 1e-9)
        assert min(overlaps) <= row["overlap_low"] <= row["overlap"] <= row["overlap_high"] <= max(overlaps)


def test_strong_heads_are_stable_and_noise_is_not(tmp_path: Path) -> None:
    strong = table_of(tmp_path / "strong", some_pairs(64, effect=20.0), tuple(range(8, 64, 8)))
    noise = table_of(tmp_path / "noise", some_pairs(64, effect=0.0), tuple(range(8, 64, 8)))
    of_strong, of_noise = (table.filter(component="z", scope="last") for table in (strong, noise))
    assert of_strong["n_pairs"].to_list() == [8, 16, 32]
    assert of_strong["overlap"].to_list() == [1.0, 1.0, 1.0]
    # By chance two sets of 5 of 12 share 5 / 12.
    assert (of_noise["overlap"] - 5 / 12).abs().max() < 0.3  # type: ignore[operator]
    assert of_noise["spearman"].abs().max() < 0.5  # type: ignore[operator]


def test_one_chunk_has_no_row(tmp_path: Path) -> None:
    assert table_of(tmp_path, some_pairs(6), ()).is_empty()


def test_heads_without_any_score_have_no_rank_correlation(tmp_path: Path) -> None:
    pairs = [Pair(index, {"z": np.zeros((2, 3, 2))}) for index in range(4)]
    assert table_of(tmp_path, pairs, (2,)).get_column("spearman").null_count() == 2


def test_chunks_of_long_runs_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = some_pairs(24)
    chunks = [pairs[start : start + 6] for start in range(0, 24, 6)]
    halves = table_of(tmp_path / "halves", [*chunks[0], *chunks[2], *chunks[1], *chunks[3]], (12,))
    monkeypatch.setattr(passes, "MOST_BLOCKS", 2)
    for pending in (passes._PENDING_ROWS, 2):  # merged once, and after every chunk
        monkeypatch.setattr(passes, "_PENDING_ROWS", pending)
        together = table_of(tmp_path / f"together-{pending}", pairs, (6, 12, 18))
        assert_frame_equal(together, halves, abs_tol=1e-12)


def test_the_same_run_has_the_same_figures(tmp_path: Path) -> None:
    pairs = some_pairs(20)
    first, second = (table_of(tmp_path / name, pairs, (4, 8, 12, 16)) for name in ("first", "second"))
    assert_frame_equal(first, second, check_exact=True)
    run = ab.open_run(tmp_path / "first")
    assert_frame_equal(run.stability(), first)
    assert run.stability(model="another").is_empty()


def test_a_run_without_a_summary_has_none_to_read(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: some_pairs(4)})
    with pytest.raises(OutputError, match="run attrib-batch summarize"):
        read_stability(tmp_path)


def test_rank_correlation_with_ties_is_scipys() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 5, (2, 20, 12)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(rank_correlation(one, two), expected, rtol=1e-12)
    assert np.isnan(rank_correlation(np.zeros((1, 4)), np.ones((1, 4)))).all()


def test_the_sentence() -> None:
    row = {"n_pairs": 1024, "top_k": 10, "overlap": 0.83}
    assert stability_sentence(row) == "With 1,024 pairs in each, the top 10 heads of two halves share 8.3 of 10."
