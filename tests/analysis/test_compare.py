"""Differences between cells, against means and cluster-robust errors worked out over all pairs at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from scipy import stats

from attrib_batch.analysis import compare, rank_correlations, summarize
from attrib_batch.analysis.comparison.compare import COMPARISON
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from tests.support.synthetic_run import IoiLike, Pair, write_run

A, B = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "other")
RNG = np.random.default_rng(5)


def varied(pairs: Sequence[Pair], strength: float = 0.5) -> list[Pair]:
    """The same pairs with other scores and metrics, which go with those there were."""
    return [
        replace(
            pair,
            scores={name: strength * scores + RNG.normal(0, 0.2, scores.shape) for name, scores in pair.scores.items()},
            clean=pair.clean + 1 + RNG.normal(0, 0.3),
        )
        for pair in pairs
    ]


PAIRS = IoiLike(layers=3, heads=2, without_heads=True).pairs(41)
PAIRS[7] = replace(PAIRS[7], roles={})
OTHERS = varied(PAIRS)


def values(pairs: Sequence[Pair], component: str, at: str) -> dict[int, np.ndarray]:
    """By pair, (layer, head) or (layer,)."""
    found = {}
    for pair in pairs:
        scores = np.float64(np.float32(pair.scores[component]))
        places = {"last": [-1], "all": list(range(pair.n_tokens))}.get(
            at, [position for position, role in pair.roles.items() if role == at]
        )
        if places:
            found[pair.pair_id] = scores[..., places].sum(-1)
    return found


def clustered(influence: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The standard error of a sum of influences (pair, ...), which add up to 0."""
    sums = np.stack([influence[units == unit].sum(0) for unit in np.unique(units)])
    return np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum(0))


def by_hand(a: Sequence[Pair], b: Sequence[Pair], component: str, at: str, *, normalized: bool) -> dict[str, Any]:
    known = {pair.pair_id: pair for pair in b}
    common = [pair for pair in a if pair.pair_id in known]
    gap_a = np.array([pair.clean - pair.corrupted for pair in common])
    gap_b = np.array([known[pair.pair_id].clean - known[pair.pair_id].corrupted for pair in common])
    unit = np.array([-1 - pair.pair_id if pair.group is None else pair.group for pair in common])
    of_a, of_b = values(a, component, at), values(b, component, at)
    here = np.array([pair.pair_id in of_a and pair.pair_id in of_b for pair in common])
    x = np.stack([of_a[pair.pair_id] for pair, there in zip(common, here, strict=True) if there])
    z = np.stack([of_b[pair.pair_id] for pair, there in zip(common, here, strict=True) if there])
    shape = (-1,) + (1,) * (x.ndim - 1)
    if normalized:
        x, z = x / gap_a.mean(), z / gap_b.mean()
    n = len(x)
    influence = np.zeros((len(common), *x.shape[1:]))
    influence[here] = (x - z - (x - z).mean(0)) / n
    if normalized:
        influence -= x.mean(0) * (gap_a / gap_a.mean() - 1).reshape(shape) / len(common)
        influence += z.mean(0) * (gap_b / gap_b.mean() - 1).reshape(shape) / len(common)
    sem = clustered(influence, unit)
    width = stats.t.ppf(0.975, len(np.unique(unit[here])) - 1) * sem
    return {"mean_a": x.mean(0), "mean_b": z.mean(0), "sem": sem, "width": width, "n": n}


def rows_at(found: pl.DataFrame, component: str, at: str) -> pl.DataFrame:
    chosen = pl.col("scope") == at if at in {"last", "all"} else pl.col("role") == at
    return found.filter(pl.col("component") == component, chosen)


def check(found: pl.DataFrame, expected: dict[str, Any], component: str, at: str) -> None:
    rows = rows_at(found, component, at).sort("layer", "head")
    assert rows.height == expected["mean_a"].size
    mean_a, mean_b, sem, width = (expected[key].ravel() for key in ("mean_a", "mean_b", "sem", "width"))
    np.testing.assert_allclose(rows["mean_a"], mean_a, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rows["mean_b"], mean_b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rows["difference"], mean_a - mean_b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rows["sem"], sem, rtol=1e-8)
    np.testing.assert_allclose(rows["low"], mean_a - mean_b - width, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(rows["high"], mean_a - mean_b + width, rtol=1e-7, atol=1e-10)
    assert rows["n_pairs_a"].unique().to_list() == rows["n_pairs_b"].unique().to_list() == [expected["n"]]
    assert rows["paired"].all()


def own_content(out: Path, **contents: str) -> Path:
    """Give datasets of a run other contents."""
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["fingerprint"]["datasets"] |= contents
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


PLACES = [("z", "last"), ("z", "all"), ("z", "S2"), ("mlp_out", "end")]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("cuts", [(), (10, 20), (1, 3, 7, 8, 30)])
def test_differences_of_the_same_pairs_are_taken_pair_by_pair(
    tmp_path: Path, cuts: tuple[int, ...], normalized: bool
) -> None:
    """The cuts of the last split mirrored pairs, which are one unit."""
    out = write_run(tmp_path, {A: PAIRS, B: OTHERS}, cuts=cuts)
    found = compare(out, {"method": "atp"}, {"method": "other"}, normalized=normalized)
    assert found.schema == COMPARISON
    for place in PLACES:
        check(found, by_hand(PAIRS, OTHERS, *place, normalized=normalized), *place)
    assert found.select("model_a", "dataset_a", "method_a", "model_b", "dataset_b", "method_b").unique().rows() == [
        ("gpt2", "ioi", "atp", "gpt2", "ioi", "other")
    ]


def test_two_runs_of_other_chunks_orders_and_pairs(tmp_path: Path) -> None:
    """Only the pairs that both scored count; groups straddle chunks in both."""
    a, b = PAIRS[:31], OTHERS[5:][::-1]
    one = write_run(tmp_path / "one", {A: a}, cuts=(9, 20))
    other = write_run(tmp_path / "other", {A: b}, cuts=(5, 6, 14))
    found = compare(one, {}, {}, other)
    for place in PLACES:
        check(found, by_hand(a, b, *place, normalized=True), *place)


def test_only_pairs_that_both_have_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and row groups of other pairs stay where they are; the result is the same."""
    monkeypatch.setattr("attrib_batch.storage.parquet.ROW_GROUP_ROWS", 60)
    a, b = PAIRS[:30], OTHERS[20:24]
    one = write_run(tmp_path / "one", {A: a}, cuts=(6, 12, 18))
    other = write_run(tmp_path / "other", {A: b})
    read: dict[str, int] = {}
    true = Store.read_table

    def watched(store: Store, relative: str, *more: Any, **named: Any) -> pa.Table:
        table = true(store, relative, *more, **named)
        if relative.startswith("scores"):
            read[relative.rpartition("/")[2]] = len(set(table["pair_id"].to_pylist()))
        return table

    monkeypatch.setattr(Store, "read_table", watched)
    found = compare(one, {}, {}, other)
    assert read == {"part-000000018-000000030.parquet": 4, "part-000000000-000000004.parquet": 4}
    for place in PLACES:
        check(found, by_hand(a, b, *place, normalized=True), *place)


def test_straddling_units_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrib_batch.analysis.comparison.paired._BYTES_AT_A_TIME", 1)
    monkeypatch.setattr("attrib_batch.analysis.comparison.paired._LEAST_PAIRS_AT_A_TIME", 3)
    a, b = ([*pairs[::2], *pairs[1::2]] for pairs in (PAIRS, OTHERS))
    out = write_run(tmp_path, {A: a, B: b}, cuts=(7, 14, 21, 30))
    for place in PLACES:
        check(compare(out, A, B), by_hand(a, b, *place, normalized=True), *place)


def test_a_pair_alone_has_no_interval(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path, {A: PAIRS[:1], B: OTHERS[:1]}), A, B)
    assert found["sem"].null_count() == found["low"].null_count() == found["high"].null_count() == found.height > 0
    assert found["difference"].null_count() == 0


@pytest.mark.parametrize("normalized", [False, True])
def test_other_pairs_are_compared_by_their_variances(tmp_path: Path, normalized: bool) -> None:
    b = varied(PAIRS[:20])
    one, two = Cell("gpt2", "one", "atp"), Cell("gpt2", "two", "atp")
    out = own_content(write_run(tmp_path, {one: PAIRS, two: b}, cuts=(10,)), two="ef" * 32)
    summarize(out)
    found = compare(out, {"dataset": "one"}, {"dataset": "two"}, normalized=normalized)
    assert found.schema == COMPARISON
    assert not found["paired"].any()
    for component, at in PLACES:
        sides = []
        for pairs in (PAIRS, b):
            # The same arithmetic with the other side at 0.
            zero = [replace(p, scores={c: 0 * s for c, s in p.scores.items()}) for p in pairs]
            sides.append(by_hand(pairs, zero, component, at, normalized=normalized))
        rows = rows_at(found, component, at).sort("layer", "head")
        variances = [side["sem"].ravel() ** 2 for side in sides]
        units = [len({p.group for p in pairs if component == "z" or p.roles}) for pairs in (PAIRS, b)]
        if at in {"S2", "end"}:
            units = [len({p.group for p in pairs if p.roles}) for pairs in (PAIRS, b)]
        freedom = sum(variances) ** 2 / sum(v**2 / (u - 1) for v, u in zip(variances, units, strict=True))
        difference = (sides[0]["mean_a"] - sides[1]["mean_a"]).ravel()
        width = stats.t.ppf(0.975, freedom) * np.sqrt(sum(variances))
        np.testing.assert_allclose(rows["difference"], difference, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows["low"], difference - width, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(rows["high"], difference + width, rtol=1e-6, atol=1e-9)
        assert rows["n_pairs_a"][0] == sides[0]["n"]
        assert rows["n_pairs_b"][0] == sides[1]["n"]


def edited(out: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    manifest = json.loads((out / "manifest.json").read_text())
    for method in manifest["job"]["methods"]:
        if method["id"] == "other":
            edit(method)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize("normalized", [False, True])
def test_directions_are_turned_the_same_way(tmp_path: Path, normalized: bool) -> None:
    noising = [replace(p, scores={name: -scores for name, scores in p.scores.items()}) for p in PAIRS]
    out = edited(write_run(tmp_path, {A: PAIRS, B: noising}), lambda method: method.update(direction="noise"))
    found = compare(out, A, B, normalized=normalized)
    np.testing.assert_allclose(found["difference"], 0, atol=1e-12)
    check(found, by_hand(PAIRS, PAIRS, "z", "last", normalized=normalized), "z", "last")


def test_models_of_different_depth_are_compared_by_relative_depth_when_asked(tmp_path: Path) -> None:
    deep, flat = Cell("deep", "ioi", "atp"), Cell("flat", "ioi", "atp")
    deeper = IoiLike(layers=5, heads=3, seed=1).pairs(12)
    flatter = IoiLike(layers=3, heads=2, seed=1).pairs(12)
    out = write_run(tmp_path, {deep: deeper, flat: flatter}, cuts=(6,))
    with pytest.raises(ValueError, match=r"deep has 5 layers and flat has 3: .* relative_depth=True"):
        compare(out, {"model": "deep"}, {"model": "flat"})
    found = rows_at(compare(out, deep, flat, relative_depth=True, normalized=False), "z", "last")
    assert found.select("layer", "head", "layer_b").rows() == [
        (layer, head, other) for layer, other in enumerate([0, 1, 1, 2, 2]) for head in (0, 1)
    ]
    mean_a = np.mean([pair.scores["z"][..., -1] for pair in deeper], axis=0)
    mean_b = np.mean([pair.scores["z"][..., -1] for pair in flatter], axis=0)
    np.testing.assert_allclose(
        found["difference"], (mean_a[:, :2] - mean_b[[0, 1, 1, 2, 2]]).ravel(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("a", "b", "options", "says"),
    [
        ({}, {}, {}, "several cells: choose one with model, dataset, method; gpt2 x ioi x atp; gpt2 x ioi x other"),
        (A, A, {}, "gpt2 x ioi x atp would be compared with itself"),
        ({"method": "atp"}, {"method": "ig"}, {}, "no cell has method='ig'; there are: gpt2 x ioi x atp"),
    ],
)
def test_cells_that_cannot_be_told_apart(tmp_path: Path, a: Any, b: Any, options: Any, says: str) -> None:
    out = write_run(tmp_path, {A: PAIRS[:4], B: OTHERS[:4]})
    with pytest.raises(ValueError, match=says):
        compare(out, a, b, **options)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"kind": "atp_star"}, {}, "gpt2 x ioi x other has magnitudes and gpt2 x ioi x atp signed scores"),
        ({"metric": "kl"}, {"normalized": False}, "raw scores of logit_diff and kl have different units"),
    ],
)
def test_cells_whose_difference_means_nothing(tmp_path: Path, change: Any, options: Any, says: str) -> None:
    out = edited(write_run(tmp_path, {A: PAIRS[:4], B: OTHERS[:4]}), lambda method: method.update(change))
    with pytest.raises(ValueError, match=says):
        compare(out, A, B, **options)


def test_without_a_gap_raw_means_are_compared(tmp_path: Path) -> None:
    flat = [replace(pair, clean=1.0, corrupted=1.0) for pair in PAIRS]
    out = write_run(tmp_path, {A: flat, B: OTHERS})
    with pytest.raises(ValueError, match="gpt2 x ioi x atp: clean and corrupted metric are the same on average"):
        compare(out, A, B)
    check(compare(out, A, B, normalized=False), by_hand(flat, OTHERS, "z", "last", normalized=False), "z", "last")


def test_what_a_second_cell_leaves_out_is_as_in_the_first(tmp_path: Path) -> None:
    cells = {Cell(model, "ioi", method): PAIRS[:4] for model in ("one", "two") for method in ("atp", "other")}
    found = compare(write_run(tmp_path, cells), {"model": "one", "method": "atp"}, {"model": "two"})
    assert found.select("model_b", "method_b").unique().rows() == [("two", "atp")]


def test_rank_correlations_between_all_cells(tmp_path: Path) -> None:
    deep, noise = Cell("deep", "ioi", "atp"), Cell("gpt2", "ioi", "other")
    noising = [replace(p, scores={name: -scores for name, scores in p.scores.items()}) for p in OTHERS]
    out = write_run(tmp_path / "a", {A: PAIRS, noise: noising, deep: IoiLike(layers=5, heads=3).pairs(8)})
    summarize(edited(out, lambda method: method.update(direction="noise")))
    second = write_run(tmp_path / "b", {A: OTHERS})
    summarize(second)
    found = rank_correlations(out, second, at="S2")
    assert found.height == 16

    def rho(a: tuple[int, str, str], b: tuple[int, str, str]) -> tuple[int, Any]:
        names = ("run", "model", "method")
        wanted = {
            f"{name}_{side}": value
            for side, cell in (("a", a), ("b", b))
            for name, value in zip(names, cell, strict=True)
        }
        [row] = found.filter(**wanted).select("n_heads", "spearman").rows()
        return row

    means = [np.mean(list(values(pairs, "z", "S2").values()), axis=0).ravel() for pairs in (PAIRS, OTHERS)]
    expected = stats.spearmanr(*means).statistic
    assert rho((1, "gpt2", "atp"), (1, "gpt2", "other")) == (6, pytest.approx(expected))
    assert rho((1, "gpt2", "other"), (1, "gpt2", "atp")) == (6, pytest.approx(expected))
    assert rho((1, "gpt2", "atp"), (2, "gpt2", "atp")) == (6, pytest.approx(expected))
    assert rho((1, "gpt2", "other"), (2, "gpt2", "atp")) == (6, pytest.approx(1.0))
    assert rho((1, "gpt2", "atp"), (1, "gpt2", "atp")) == (6, pytest.approx(1.0))
    assert rho((1, "gpt2", "atp"), (1, "deep", "atp")) == (0, None)
    related = rank_correlations(out, at="S2", relative_depth=True).filter(model_a="deep", model_b="gpt2")
    assert related["n_heads"].to_list() == [10, 10]
    with pytest.raises(ValueError, match="no cell has scores of q at 'last'"):
        rank_correlations(out, component="q")


def test_magnitudes_are_ranked_with_magnitudes(tmp_path: Path) -> None:
    sizes = [replace(p, scores={name: np.abs(scores) for name, scores in p.scores.items()}) for p in PAIRS]
    out = edited(write_run(tmp_path, {A: PAIRS, B: sizes}), lambda method: method.update(kind="atp_star"))
    summarize(out)
    means = [np.abs(np.mean(list(values(pairs, "z", "last").values()), axis=0)).ravel() for pairs in (PAIRS, sizes)]
    found = rank_correlations(out).filter(method_a="atp", method_b="other")
    assert found["spearman"].item() == pytest.approx(stats.spearmanr(*means).statistic)
