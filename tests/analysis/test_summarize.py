from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attrib_batch.analysis import read_summary, summarize
from attrib_batch.analysis.statistics import passes
from attrib_batch.errors import OutputError, RequestError
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table
from tests.support.synthetic_run import Failure, Pair, score_table, write_chunk, write_manifest, write_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CELL = Cell("gpt2", "ioi", "atp")
HEAD_KEYS = ("component", "scope", "role", "layer", "head")
POSITION_KEYS = ("component", "scope", "layer", "position")


def literal(values: Sequence[float], units: Sequence[object], ids: Sequence[int]) -> dict[str, float | int | None]:
    """Mean, std and the cluster-robust standard error, written out from their definitions."""
    groups = units
    n, mean = len(values), math.fsum(values) / len(values)
    sums: dict[object, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    g = len(sums)
    squares = math.fsum(total**2 for total in sums.values())
    return {
        "n_pairs": n,
        "n_groups": g,
        "mean": mean,
        "std": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None,
        "sem": math.sqrt(g / (g - 1) * squares) / n if g > 1 else None,
        "share_positive": sum(value > 0 for value in values) / n,
        "min": min(values),
        "max": max(values),
        "min_pair": min(pair for pair, value in zip(ids, values, strict=True) if value == min(values)),
        "max_pair": min(pair for pair, value in zip(ids, values, strict=True) if value == max(values)),
    }


def expected(pairs: Sequence[Pair]) -> tuple[dict[tuple, dict], dict[tuple, dict]]:
    """Both summaries, computed pair by pair with numpy."""
    heads: dict[tuple, list] = defaultdict(list)
    positions: dict[tuple, list] = defaultdict(list)
    for pair in pairs:
        unit = ("pair", pair.pair_id) if pair.group is None else ("group", pair.group)
        for component, stored in pair.scores.items():
            scores = stored.astype(np.float32).astype(np.float64)
            has_heads = scores.ndim == 3
            by_head = scores if has_heads else scores[:, None]
            for layer, head in np.ndindex(by_head.shape[:2]):
                row, at = by_head[layer, head], (layer, head if has_heads else None)
                heads[component, "all", None, *at].append((row.sum(), unit, pair.pair_id))
                heads[component, "last", None, *at].append((row[-1], unit, pair.pair_id))
                for role in set(pair.roles.values()):
                    span = [position for position, name in pair.roles.items() if name == role]
                    heads[component, "role", role, *at].append((row[span].sum(), unit, pair.pair_id))
            for layer, position in np.ndindex(by_head.shape[0], pair.n_tokens):
                value = by_head[layer, :, position].sum(), unit, pair.pair_id
                positions[component, "position", layer, position].append(value)
                positions[component, "from_end", layer, position - pair.n_tokens].append(value)
    return (
        {key: literal(*zip(*found, strict=True)) for key, found in heads.items()},
        {key: literal(*zip(*found, strict=True)) for key, found in positions.items()},
    )


def assert_equal(frame: pl.DataFrame, keys: Sequence[str], want: dict[tuple, dict], gap: float) -> None:
    got = {tuple(row[key] for key in keys): row for row in frame.iter_rows(named=True)}
    assert got.keys() == want.keys()
    for key, row in want.items():
        for name, number in row.items():
            close = number if number is None else pytest.approx(number, rel=1e-9, abs=1e-9)
            assert got[key][name] == close, (key, name)
            if name in {"mean", "std"}:
                scaled = number if number is None else pytest.approx(number / gap, rel=1e-9, abs=1e-9)
                assert got[key][f"{name}_normalized"] == scaled, (key, name)


def some_pairs(groups: Sequence[int | None], *, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for index, group in enumerate(groups):
        n_tokens = 3 + index % 3
        scores = {"z": rng.normal(size=(2, 3, n_tokens)), "mlp_out": rng.normal(size=(2, n_tokens))}
        roles = {0: "IO", 1: "IO", n_tokens - 1: "end"} if index % 4 else {n_tokens - 1: "end"}
        pairs.append(Pair(100 - index, scores, roles, clean=rng.normal(4), corrupted=rng.normal(), group=group))
    return pairs


def gap_of(pairs: Sequence[Pair]) -> float:
    return float(np.mean([pair.clean for pair in pairs]) - np.mean([pair.corrupted for pair in pairs]))


def test_numbers_computed_by_hand(tmp_path: Path) -> None:
    # One layer, two heads, two positions; clean 3 and corrupted -1, so the gap is 4.
    one = Pair(0, {"z": np.array([[[1.0, 2.0], [0.0, -1.0]]])}, {1: "end"}, group=7)
    two = Pair(1, {"z": np.array([[[3.0, 4.0], [0.0, -1.0]]])}, {1: "end"}, group=7)
    three = Pair(2, {"z": np.array([[[0.0, 9.0], [0.0, -1.0]]])}, {1: "end"})
    summarize(write_run(tmp_path, {CELL: [one, two, three]}))
    summary = read_summary(tmp_path)

    last = summary.heads.row(by_predicate=(pl.col("scope") == "last") & (pl.col("head") == 0), named=True)
    assert (last["mean"], last["mean_normalized"]) == (5.0, 1.25)
    assert (last["min"], last["max"], last["n_pairs"], last["n_groups"]) == (2.0, 9.0, 3, 2)
    assert last["std"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    # Group sums of deviations: (-3) + (-1) = -4 and 4.
    assert last["sem"] == pytest.approx(math.sqrt(2 / 1 * (16 + 16)) / 3)
    assert last["sem_normalized"] == pytest.approx(last["sem"] / 4)

    whole = summary.heads.row(by_predicate=(pl.col("scope") == "all") & (pl.col("head") == 0), named=True)
    assert whole["mean"] == pytest.approx((3 + 7 + 9) / 3)
    second = summary.positions.row(by_predicate=pl.col("position") == 1, named=True)
    assert second["mean"] == pytest.approx((1 + 3 + 8) / 3)

    cell = summary.baselines.row(0, named=True)
    assert (cell["mean_clean"], cell["mean_corrupted"], cell["mean_difference"]) == (3.0, -1.0, 4.0)
    assert (cell["expected"], cell["scored"], cell["failed"]) == (3, 3, 0)
    assert (cell["share_clean_higher"], cell["sem_difference"]) == (1.0, 0.0)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("cuts", [(), (4,), (3, 5), tuple(range(1, 12))])
def test_summaries_equal_an_independent_computation(tmp_path: Path, cuts: tuple[int, ...], *, moments: bool) -> None:
    # Groups of one to three pairs; the third cut separates the members of most, and 1 is far from its mirror.
    pairs = some_pairs([1, 2, 2, None, 3, 3, 3, None, 4, 5, 5, 1])
    summarize(write_run(tmp_path, {CELL: pairs}, cuts=cuts, moments=moments))
    summary, (heads, positions) = read_summary(tmp_path), expected(pairs)
    assert_equal(summary.heads, HEAD_KEYS, heads, gap_of(pairs))
    assert_equal(summary.positions, POSITION_KEYS, positions, gap_of(pairs))


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.none() | st.integers(-2, 3), min_size=1, max_size=9),
    cuts=st.lists(st.integers(1, 8), max_size=4),
    pending=st.integers(2, 4),
    seed=st.integers(0, 1000),
    moments=st.booleans(),
)
def test_how_pairs_are_cut_into_parts_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[int | None],
    cuts: list[int],
    pending: int,
    seed: int,
    *,
    moments: bool,
) -> None:
    pairs = some_pairs(groups, seed=seed)
    out = write_run(tmp_path_factory.mktemp("cut"), {CELL: pairs}, cuts=cuts, moments=moments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_PENDING_ROWS", pending)
        patch.setattr(passes, "_MOST_LAYOUTS", pending - 1)
        patch.setattr(passes, "_UNITS_AT_A_TIME", pending - 1)
        summarize(out)
    summary, (heads, positions) = read_summary(out), expected(pairs)
    assert_equal(summary.heads, HEAD_KEYS, heads, gap_of(pairs))
    assert_equal(summary.positions, POSITION_KEYS, positions, gap_of(pairs))


def test_only_groups_in_several_parts_straddle(tmp_path: Path) -> None:
    pairs = some_pairs([1, 1, 2, 2, None, None])
    write_run(tmp_path, {CELL: pairs}, cuts=(3,))
    from attrib_batch.analysis.tables import committed_parts, pairs_of_parts

    straddling = passes.straddling_pairs(pairs_of_parts(committed_parts(tmp_path, CELL)))
    assert straddling.select("pair_id", "unit", "part").rows() == [(98, 97, 0), (97, 97, 1)]


def test_float32_scores_are_added_in_float64(tmp_path: Path) -> None:
    # In float32, 1e8 + 1 is 1e8: a thousand ones would vanish.
    scores = np.ones((1, 1, 1001))
    scores[0, 0, 0] = 1e8
    summarize(write_run(tmp_path, {CELL: [Pair(0, {"z": scores}), Pair(1, {"z": scores})]}))
    heads = read_summary(tmp_path).heads
    assert heads.filter(pl.col("scope") == "all").get_column("mean").item() == 100_001_000.0


def test_a_mean_far_from_zero_keeps_its_spread(tmp_path: Path) -> None:
    values = [2.0**23 + index for index in range(8)]
    pairs = [Pair(index, {"z": np.full((1, 1, 1), value)}) for index, value in enumerate(values)]
    summarize(write_run(tmp_path, {CELL: pairs}, cuts=range(1, 8)))
    row = read_summary(tmp_path).heads.filter(pl.col("scope") == "last").row(0, named=True)
    assert row["std"] == pytest.approx(math.sqrt(6), rel=1e-12)
    assert row["sem"] == pytest.approx(math.sqrt(6 / 8), rel=1e-12)


def test_a_role_called_last_or_all_stays_a_role(tmp_path: Path) -> None:
    pair = Pair(0, {"z": np.array([[[1.0, 10.0, 100.0]]])}, {0: "last", 1: "all"})
    summarize(write_run(tmp_path, {CELL: [pair]}))
    rows = read_summary(tmp_path).heads.select("scope", "role", "mean").rows()
    assert set(rows) == {("role", "last", 1), ("role", "all", 10), ("last", None, 100), ("all", None, 111)}


def test_a_prompt_longer_than_16_bits_has_a_mean_at_its_last_position(tmp_path: Path) -> None:
    scores = np.zeros((1, 1, 40_000))
    scores[0, 0, -1] = 2.0
    summarize(write_run(tmp_path, {CELL: [Pair(0, {"z": scores})]}))
    [row] = read_summary(tmp_path).positions.filter(pl.col("mean") > 0, scope="position").rows(named=True)
    assert (row["position"], row["mean"]) == (39_999, 2.0)


def test_one_pair_has_no_spread(tmp_path: Path) -> None:
    summarize(write_run(tmp_path, {CELL: some_pairs([None])}))
    heads = read_summary(tmp_path).heads
    assert heads.get_column("std").null_count() == heads.get_column("sem").null_count() == len(heads)


def test_without_a_gap_nothing_is_normalised(tmp_path: Path) -> None:
    pairs = [Pair(index, {"z": np.ones((1, 1, 2))}, clean=5.0 + index, corrupted=6.0 - index) for index in range(2)]
    summarize(write_run(tmp_path, {CELL: pairs}))
    summary = read_summary(tmp_path)
    assert summary.baselines.get_column("normalizable").to_list() == [False]
    assert summary.heads.get_column("mean").to_list() == [2.0, 1.0]  # all, last
    assert summary.heads.get_column("mean_normalized").null_count() == len(summary.heads)


def test_a_negative_gap_flips_signs_but_not_spreads(tmp_path: Path) -> None:
    pairs = [Pair(index, {"z": np.full((1, 1, 1), 1.0 + index)}, clean=-1.0, corrupted=1.0) for index in range(2)]
    summarize(write_run(tmp_path, {CELL: pairs}))
    row = read_summary(tmp_path).heads.row(0, named=True)
    assert row["mean_normalized"] == -0.75
    assert row["sem_normalized"] == pytest.approx(0.25)


def test_cells_do_not_mix(tmp_path: Path) -> None:
    other = Cell("2024", "ioi", "atp")
    ours, theirs = some_pairs([1, 1, 2]), some_pairs([1, 1, 2], seed=9)
    summarize(write_run(tmp_path, {CELL: ours, other: theirs}, cuts=(1,)))
    summary = read_summary(tmp_path)
    for cell, pairs in ((CELL, ours), (other, theirs)):
        heads = summary.heads.filter(pl.col("model") == cell.model)
        assert_equal(heads, HEAD_KEYS, expected(pairs)[0], gap_of(pairs))


def test_failures_are_counted_by_reason_with_the_first_as_example(tmp_path: Path) -> None:
    failures = [
        Failure(9, error="too_long", message="nine"),
        Failure(4, error="too_long", message="four"),
        Failure(5, stage="score", error="non_finite", message="five"),
    ]
    summarize(write_run(tmp_path, {CELL: some_pairs([None] * 2)}, failures={CELL: failures}))
    summary = read_summary(tmp_path)
    assert summary.failures.drop("model", "dataset", "method").rows() == [
        ("score", "non_finite", 1, 5, "five"),
        ("validate", "too_long", 2, 4, "four"),
    ]
    assert summary.baselines.select("expected", "scored", "failed").row(0) == (5, 2, 3)


def test_a_cell_in_which_every_pair_failed_has_counts_and_no_means(tmp_path: Path) -> None:
    write_manifest(tmp_path, {CELL: 2})
    write_chunk(tmp_path, Chunk(CELL, 0, 2), [], [Failure(0), Failure(1)])
    summarize(tmp_path)
    summary = read_summary(tmp_path)
    assert summary.heads.is_empty()
    assert summary.baselines.select("expected", "scored", "failed", "mean_clean").row(0) == (2, 0, 2, None)


def test_what_is_not_committed_is_not_read(tmp_path: Path) -> None:
    pairs = some_pairs([None] * 6)
    write_run(tmp_path, {CELL: pairs[:4]}, cuts=(2,))
    unfinished = Chunk(CELL, 4, 6)
    write_chunk(tmp_path, unfinished, pairs[4:], [Failure(1)])
    scores = Store(tmp_path).path(unfinished.path(Table.SCORES))
    scores.rename(scores.with_name(f".tmp-123-{scores.name}"))
    summarize(tmp_path)
    summary = read_summary(tmp_path)
    assert_equal(summary.heads, HEAD_KEYS, expected(pairs[:4])[0], gap_of(pairs[:4]))
    assert summary.baselines.get_column("failed").item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    scores = np.ones((1, 2, 3))
    scores[0, 1, 2] = bad
    write_run(tmp_path, {CELL: [Pair(5, {"z": np.ones((1, 2, 3))}), Pair(6, {"z": scores})]})
    with pytest.raises(OutputError, match=r"1 scores of 1 pairs are NaN or infinite \(first pair_id 6\)"):
        summarize(tmp_path)
    assert not (tmp_path / "summary").exists()


def test_a_metric_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: [Pair(5, {"z": np.ones((1, 1, 1))}, clean=math.nan)]})
    with pytest.raises(OutputError, match="1 pairs have a clean or corrupted metric"):
        summarize(tmp_path)


@pytest.mark.parametrize("damage", ["lost_row", "doubled_row", "unknown_pair"])
def test_scores_that_do_not_match_their_baselines_are_refused(tmp_path: Path, damage: str) -> None:
    pairs = some_pairs([None] * 3)
    write_run(tmp_path, {CELL: pairs})
    table = score_table(pairs)
    damaged = {
        "lost_row": table.slice(1),
        "doubled_row": pa.concat_tables([table, table.slice(0, 1)]),
        "unknown_pair": score_table([*pairs[:2], Pair(1, pairs[2].scores)]),
    }[damage]
    pq.write_table(damaged, tmp_path / Chunk(CELL, 0, 3).path(Table.SCORES))
    with pytest.raises(OutputError, match="does not match its baselines"):
        summarize(tmp_path)


def test_scores_without_baselines_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, {CELL: some_pairs([None])})
    (tmp_path / Chunk(CELL, 0, 1).path(Table.BASELINES)).unlink()
    with pytest.raises(OutputError, match="has no baselines file"):
        summarize(tmp_path)


def test_a_pair_scored_in_two_chunks_is_refused(tmp_path: Path) -> None:
    pair = some_pairs([None])[0]
    write_run(tmp_path, {CELL: [pair, pair]}, cuts=(1,))
    with pytest.raises(OutputError, match="1 pairs were scored more than once"):
        summarize(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no manifest\.json"):
        summarize(tmp_path)
    write_manifest(tmp_path, {CELL: 2})
    with pytest.raises(RequestError, match="no committed chunk yet"):
        summarize(tmp_path)
