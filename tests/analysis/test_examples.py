"""The strongest and weakest pairs of a head, against all pairs sorted by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from attrib_batch.analysis import summarize
from attrib_batch.analysis.examples import EXAMPLES, examples, examples_of_top
from attrib_batch.analysis.tables import Part
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk
from tests.support.synthetic_run import IoiLike, Pair, write_chunk, write_manifest, write_prompts, write_run

module = sys.modules["attrib_batch.analysis.examples"]
ATP, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "other")
PAIRS = [
    replace(pair, template=f"wording {pair.pair_id % 3}")
    for pair in IoiLike(layers=4, heads=3, without_heads=True).pairs(40)
]
CUTS = (3, 11, 12, 20, 30)


def value(pair: Pair, component: str, layer: int, head: int | None, at: str) -> float:
    scores = np.float64(np.float32(pair.scores[component]))
    row = scores[layer] if head is None else scores[layer, head]
    if at == "all":
        return float(row.sum())
    if at == "last":
        return float(row[-1])
    return float(sum(row[position] for position, role in pair.roles.items() if role == at))


def by_hand(pairs: list[Pair], n: int, *key: object) -> list[tuple[str, int, int]]:
    ranked = sorted(pairs, key=lambda pair: (-value(pair, *key), pair.pair_id))  # type: ignore[arg-type]
    strongest = [pair.pair_id for pair in ranked[:n]]
    ranked = sorted(pairs, key=lambda pair: (value(pair, *key), pair.pair_id))  # type: ignore[arg-type]
    weakest = [pair.pair_id for pair in ranked[:n] if pair.pair_id not in strongest]
    return [("strongest", *row) for row in enumerate(strongest, 1)] + [
        ("weakest", *row) for row in enumerate(weakest, 1)
    ]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scores files that are read, in order."""
    names: list[str] = []
    read = module.read_dense

    def watch(cell: Cell, part: Part, at: str | tuple[str, ...]) -> object:
        names.append(f"{cell.method}/{part.scores.name}")
        return read(cell, part, at)

    monkeypatch.setattr(module, "read_dense", watch)
    return names


@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("n", [1, 4, 100])
@pytest.mark.parametrize(
    "key", [("z", 1, 0, "all"), ("z", 2, 1, "last"), ("z", 0, 1, "S2"), ("mlp_out", 0, None, "all")]
)
def test_they_are_those_of_all_pairs_sorted(tmp_path: Path, key: tuple, n: int, moments: bool) -> None:
    out = write_run(tmp_path, {ATP: PAIRS}, cuts=CUTS, moments=moments)
    component, layer, head, at = key
    found = examples(out, component=component, layer=layer, head=head, at=at, n=n)
    assert found.schema == EXAMPLES
    assert found.select("which", "rank", "pair_id").rows() == by_hand(PAIRS, n, *key)
    pairs = {pair.pair_id: pair for pair in PAIRS}
    for row in found.iter_rows(named=True):
        pair = pairs[row["pair_id"]]
        assert row["value"] == pytest.approx(value(pair, *key), rel=1e-12, abs=1e-15)
        assert (row["clean_metric"], row["corrupted_metric"]) == (pair.clean, pair.corrupted)
        assert row["template"] == pair.template
        scores = pair.scores[component][layer] if head is None else pair.scores[component][layer, head]
        assert row["scores"] == np.float32(scores).astype(float).tolist()
        assert row["tokens"] is row["corrupted_tokens"] is row["task"] is None
    assert (found["component"][0], found["layer"][0], found["head"][0], found["at"][0]) == key


def test_no_more_chunks_are_opened_than_pairs_are_asked_for(tmp_path: Path, opened: list[str]) -> None:
    out = write_run(tmp_path, {ATP: PAIRS}, cuts=range(1, 40), moments=True)
    examples(out, layer=1, head=0, at="last", n=3)
    assert len(opened) == len(set(opened)) == 6, "one pair a chunk: three from each end"
    opened.clear()
    few = write_run(tmp_path / "few", {ATP: sorted(PAIRS, key=lambda p: -value(p, "z", 1, 0, "last"))}, cuts=(10, 20),
                    moments=True)  # fmt: skip
    examples(few, layer=1, head=0, at="last", n=3)
    assert len(opened) == 2, "the three strongest lie in one chunk, and the three weakest in another"


def test_equal_values_come_by_pair_id(tmp_path: Path) -> None:
    flat = [replace(pair, scores={"z": np.ones_like(pair.scores["z"])}) for pair in PAIRS]
    out = write_run(tmp_path, {ATP: flat[::-1]}, cuts=CUTS, moments=True)
    found = examples(out, layer=0, head=0, at="last", n=2)
    assert found["pair_id"].to_list() == [0, 1]


def test_tokens_come_from_the_prompts_where_they_are(tmp_path: Path) -> None:
    write_manifest(tmp_path, {ATP: 8})
    chunks = {Chunk(ATP, 0, 4): PAIRS[:4], Chunk(ATP, 4, 8): PAIRS[4:8]}
    for chunk, pairs in chunks.items():
        write_chunk(tmp_path, chunk, pairs)
    write_prompts(tmp_path, Chunk(ATP, 4, 8), PAIRS[4:8], task="ioi")
    found = examples(tmp_path, layer=1, head=0, n=4)
    assert found.height == 8
    for row in found.iter_rows(named=True):
        pair = PAIRS[row["pair_id"]]
        if row["pair_id"] < 4:
            assert row["tokens"] is row["corrupted_tokens"] is row["task"] is None
        else:
            assert row["tokens"] == [f" clean{pair.pair_id}.{place}" for place in range(pair.n_tokens)]
            assert row["corrupted_tokens"][0] == f" corrupted{pair.pair_id}.0"
            assert row["task"] == "ioi"
            assert len(row["tokens"]) == len(row["scores"])


def test_positions_without_a_row_have_no_score(tmp_path: Path) -> None:
    pairs = [replace(pair, scores={"z": pair.scores["z"]}, stored=[9]) for pair in PAIRS]
    out = write_run(tmp_path, {ATP: pairs}, cuts=CUTS, method={"kind": "exact", "at": "S2"}, moments=True)
    found = examples(out, layer=0, head=1, at="S2", n=2)
    assert found.select("which", "rank", "pair_id").rows() == by_hand(PAIRS, 2, "z", 0, 1, "S2")
    for scores in found["scores"]:
        assert [place for place, score in enumerate(scores) if score is not None] == [9]


def test_each_cell_has_its_own_and_one_can_be_chosen(tmp_path: Path) -> None:
    others = [replace(pair, scores={"z": -pair.scores["z"]}) for pair in PAIRS]
    out = write_run(tmp_path, {ATP: PAIRS, OTHER: others}, cuts=CUTS, moments=True)
    both = examples(out, layer=1, head=0, n=2)
    assert both["method"].to_list() == ["atp"] * 4 + ["other"] * 4
    strongest, weakest = (both.filter(method=name, which=which)["pair_id"].to_list()
                          for name, which in (("atp", "strongest"), ("other", "weakest")))  # fmt: skip
    assert strongest == weakest
    assert examples(out, layer=1, head=0, n=2, method="other").equals(both.filter(method="other"))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"layer": 9, "head": 0}, r"no score of z, L9H0, at='all'; there is z: 4 layers of 3 heads"),
        ({"layer": 0}, r"no score of z, L0, at='all'"),
        ({"layer": 0, "head": 0, "at": "IO2"}, "at=last, all, IO, S1, S2, end"),
        ({"layer": 0, "head": 0, "component": "q"}, "mlp_out: 4 layers, head=None"),
        ({"layer": 0, "head": 0, "n": 0}, "n=0"),
        ({"layer": 0, "head": 0, "method": "ig"}, "no cell has method='ig'; there are: gpt2 x ioi x atp"),
    ],
)
@pytest.mark.parametrize("moments", [True, False])
def test_what_is_not_there_is_told_with_what_is(tmp_path: Path, asked: dict, says: str, moments: bool) -> None:
    out = write_run(tmp_path, {ATP: PAIRS[:4]}, moments=moments)
    with pytest.raises(ValueError, match=says):
        examples(out, **asked)


@pytest.mark.parametrize("moments", [True, False])
def test_those_of_the_strongest_heads_are_found_in_one_pass(tmp_path: Path, opened: list[str], moments: bool) -> None:
    out = write_run(tmp_path, {ATP: PAIRS, OTHER: PAIRS[:7]}, cuts=CUTS, moments=moments)
    summarize(out)
    opened.clear()
    found = examples_of_top(out, n_heads=2, n=2)
    assert len(opened) == len(set(opened))
    for method, pairs in (("atp", PAIRS), ("other", PAIRS[:7])):
        for component, shape in (("z", (4, 3)), ("mlp_out", (4,))):
            means = np.mean([pair.scores[component][..., -1] for pair in pairs], axis=0)
            best = [np.unravel_index(i, shape) for i in np.argsort(-np.abs(means), axis=None, kind="stable")[:2]]
            rows = found.filter(method=method, component=component)
            assert rows.select("layer", "head").unique(maintain_order=True).rows() == [
                (int(where[0]), int(where[1]) if len(where) == 2 else None) for where in best
            ]
            for (layer, head), here in rows.group_by("layer", "head", maintain_order=True):
                assert here.select("which", "rank", "pair_id").rows() == by_hand(
                    pairs, 2, component, layer, head, "end"
                )
    assert found["at"].unique().to_list() == ["end"]
    assert found.schema == EXAMPLES


def test_a_run_of_which_nothing_is_scored(tmp_path: Path) -> None:
    write_manifest(tmp_path, {ATP: 4})
    with pytest.raises(ValueError, match="nothing is scored yet"):
        examples(tmp_path, layer=0, head=0)


def test_pairs_without_a_role_do_not_count(tmp_path: Path) -> None:
    pairs = [replace(pair, roles={}) if pair.pair_id % 2 else pair for pair in PAIRS]
    found = examples(write_run(tmp_path, {ATP: pairs}, cuts=CUTS, moments=True), layer=0, head=1, at="S2", n=30)
    assert sorted(found["pair_id"]) == [pair.pair_id for pair in pairs if pair.roles]
    assert found.get_column("value").dtype == pl.Float64
