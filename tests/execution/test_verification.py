"""Verification as a stage: the sample, what is measured, and that it is the truth by an independent count."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from attrib_batch.analysis import read_manifest, read_verified, verified_cells
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.columns import TableForm
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Component
from tests.support import oracle
from tests.support.jobs import TinyJob, attrib_batch_here, read_scores
from tests.support.near import assert_same_scores
from tests.support.terms import largest_terms
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

pytestmark = pytest.mark.slow
N_PAIRS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyJob, Path]:
    """A run with two estimates of the same thing and one of another, verified."""
    job = TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=12)
    methods = [
        {"id": "atp", "components": ["z", "mlp_out"]},
        {"id": "ig", "kind": "atp_ig", "ig_steps": 4},
        {"id": "noise", "kind": "atp", "direction": "noise"},
    ]
    out = job.folder / "out"
    for command in (
        ("run", job.write(methods=methods), "--out", out),
        ("verify", out, "--pairs", str(N_PAIRS), "--seed", "1"),
    ):
        ended = attrib_batch_here(*command)
        assert ended.code == 0, ended.said
    return job, out


def verified(out: Path) -> pl.DataFrame:
    return read_scores(out / "verification")


def test_methods_of_one_metric_and_direction_share_a_measurement_that_says_what_it_is(
    run: tuple[TinyJob, Path],
) -> None:
    _, out = run
    found = verified(out).group_by("method").agg(pl.col("component").unique().sort(), pl.col("pair_id").unique().sort())
    by_method = {row["method"]: row for row in found.to_dicts()}
    assert {name: row["component"] for name, row in by_method.items()} == {
        "exact": ["mlp_out", "z"], "exact-logit_diff-noise": ["z"],
    }  # fmt: skip
    [ids] = {tuple(row["pair_id"]) for row in by_method.values()}
    assert len(ids) == N_PAIRS
    # Sampled by group: a pair comes with its mirror.
    assert all(pair_id ^ 1 in ids for pair_id in ids)
    stage = read_manifest(out).stage("verification")
    assert stage is not None
    assert stage.needs == ("scoring",)
    assert [method["kind"] for method in stage.job["methods"]] == ["exact", "exact"]
    assert not (out / "verification/manifest.json").exists(), "one manifest tells it all"


def test_each_method_is_compared_with_what_measures_it(run: tuple[TinyJob, Path]) -> None:
    _, out = run
    cells = {cell.method: read_verified(out, cell) for cell in verified_cells(out)}
    assert {name: [str(c) for c in found.components] for name, found in cells.items()} == {
        "atp": ["z", "mlp_out"], "ig": ["z"], "noise": ["z"],
    }  # fmt: skip
    atp, ig, noise = (found.rows.filter(component="z")["exact"].to_numpy() for found in cells.values())
    assert (atp == ig).all()
    assert np.abs(atp - noise).max() > 0.01 * np.abs(atp).max()


def test_the_truth_is_that_of_replacing_one_activation_at_a_time(run: tuple[TinyJob, Path]) -> None:
    job, out = run
    scores = verified(out).filter(method="exact", component="z")
    pair_id = scores["pair_id"][0]
    [pair] = [pair for pair in PairTable.open(job.pairs).rows(0, 12) if pair.pair_id == pair_id]
    tokenizer = tiny_tokenizer()
    clean, corrupted = (tokenizer(text)["input_ids"] for text in (pair.clean, pair.corrupted))
    right, wrong = (
        [tokenizer(text)["input_ids"][0] for text in answers] for answers in (pair.answers, pair.wrong_answers)
    )
    metric = oracle.logit_diff(right, wrong)
    model = ARCHITECTURES["llama"]()
    theirs = oracle.exact(model, clean, corrupted, metric, Component.Z, direction="denoise")
    ours = scores.filter(pair_id=pair_id)["score"].to_numpy().reshape(theirs.shape)
    terms = largest_terms(model, clean, corrupted, metric)
    assert_same_scores({Component.Z: ours}, {Component.Z: theirs}, terms)


def test_agreement_and_report_tell_of_it(run: tuple[TinyJob, Path]) -> None:
    _, out = run
    agreement = pl.read_parquet(out / "verification/agreement.parquet")
    assert {"model", "dataset", "method", "component", "statistic", "value", "low", "high"} <= set(agreement.columns)
    assert set(agreement["method"]) == {"atp", "ig", "noise"}
    assert attrib_batch_here("report", out).code == 0


def test_inputs_that_were_moved_are_named(run: tuple[TinyJob, Path]) -> None:
    """Everything is measured already, so that nothing is computed again."""
    job, out = run
    verify = ("verify", out, "--pairs", str(N_PAIRS), "--seed", "1")
    pairs, model = job.pairs.rename(job.folder / "moved.parquet"), job.model.rename(job.folder / "moved")
    try:
        lost = attrib_batch_here(*verify)
        assert lost.code == 2
        assert "Name the same file with --dataset random=PATH" in " ".join(lost.said.split())
        found = attrib_batch_here(*verify, "--dataset", f"random={pairs}", "--model", f"tiny={model}")
        assert found.code == 0, found.said
    finally:
        pairs.rename(job.pairs)
        model.rename(job.model)


def test_a_sample_is_not_measured_twice_and_another_is_refused(run: tuple[TinyJob, Path]) -> None:
    _, out = run
    before = verified(out)
    again = attrib_batch_here("verify", out, "--pairs", str(N_PAIRS), "--seed", "1")
    assert again.code == 0, again.said
    assert f"resuming verification: {2 * N_PAIRS} of {2 * N_PAIRS} pairs are committed" in again.said
    assert verified(out).equals(before)
    other = attrib_batch_here("verify", out, "--pairs", str(N_PAIRS), "--seed", "2")
    assert other.code == 2, other.said
    assert "remove it to verify anew" in " ".join(other.said.split())
    assert "seed of the sample: was 1, is now 2" in other.said


def test_a_sample_grows(run: tuple[TinyJob, Path], tmp_path: Path) -> None:
    _, out = run
    grown = tmp_path / "out"
    shutil.copytree(out, grown)
    before = verified(out)
    ended = attrib_batch_here("verify", grown, "--pairs", str(N_PAIRS + 2), "--seed", "1")
    assert ended.code == 0, ended.said
    assert f"resuming verification: {2 * N_PAIRS} of {2 * N_PAIRS + 4} pairs are committed" in ended.said
    after = verified(grown)
    assert after["pair_id"].n_unique() == N_PAIRS + 2
    kept = after.filter(pl.col("pair_id").is_in(before["pair_id"].unique().implode()))
    assert kept.equals(before), "what was measured is not measured again"


def test_what_a_sweep_adds_is_verified_beside_what_was(run: tuple[TinyJob, Path], tmp_path: Path) -> None:
    job, out = run
    grown = tmp_path / "out"
    shutil.copytree(out, grown)
    more = [{"id": "atp", "components": ["z", "mlp_out"]}, {"id": "keys", "kind": "atp", "components": ["k", "z"]}]
    for command in (
        ("run", job.write("more.yaml", methods=more), "--out", grown),
        ("verify", grown, "--pairs", str(N_PAIRS), "--seed", "1"),
    ):
        ended = attrib_batch_here(*command)
        assert ended.code == 0, ended.said
    found = verified(grown).group_by("method").agg(pl.col("component").unique().sort())
    assert dict(found.iter_rows()) == {
        "exact": ["mlp_out", "z"], "exact-logit_diff-noise": ["z"], "exact-2": ["k"],
    }  # fmt: skip
    [keys] = [read_verified(grown, cell) for cell in verified_cells(grown) if cell.method == "keys"]
    assert [str(component) for component in keys.components] == ["k", "z"]


def test_a_job_may_ask_for_it(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=12)
    ended = attrib_batch_here("run", job.write(verify={"pairs": 2}), "--out", tmp_path / "out")
    assert ended.code == 0, ended.said
    assert "12 of 12 pairs scored, 0 in failures" in ended.output
    assert "2 pairs measured by activation patching, 0 in failures" in ended.output
    assert pl.read_parquet(tmp_path / "out/verification/agreement.parquet").height
    [log] = (tmp_path / "out/logs").glob("*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(event["event"] == "worker_ready" for event in events) == 1, "the worker goes on from stage to stage"
    assert [event["stage"] for event in events if event["event"] == "stage_started"] == ["scoring", "verification"]
    [record] = [json.loads(path.read_text()) for path in (tmp_path / "out/executions").glob("*.json")]
    assert record["pairs_scored"] == 14
    status = attrib_batch_here("status", tmp_path / "out")
    assert "tiny x random x exact (verification): 2 scored, 0 failed, 0 waiting of 2 pairs" in status.output


def test_a_job_of_exact_methods_has_nothing_to_verify(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=2)
    ended = attrib_batch_here("run", job.write(verify={}, methods=[{"id": "exact"}]), "--out", tmp_path / "out")
    assert ended.code == 2
    assert "every method of the job is exact already" in ended.said


def test_a_sample_of_pairs_whose_answers_are_token_ids_keeps_them(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=4)
    rows = [replace(pair, answers=(2,), wrong_answers=(3, 4)) for pair in PairTable.open(job.pairs).rows(0, 4)]
    write_pairs(job.pairs, rows, form=TableForm(id_columns=("answers", "wrong_answers")))
    ended = attrib_batch_here("run", job.write(verify={"pairs": 4}), "--out", tmp_path / "out")
    assert ended.code == 0, ended.said
    sample = PairTable.open(tmp_path / "out/verification/pairs/random.parquet")
    assert sample.rows(0, 4) == rows
    assert sample.form.id_columns == {"answers", "wrong_answers"}


def test_a_sample_may_be_measured_at_some_positions_and_later_at_all(tmp_path: Path) -> None:
    job, out = TinyJob.make(tmp_path, n_pairs=6), tmp_path / "out"
    ended = attrib_batch_here("run", job.write(verify={"pairs": 4, "at": "last"}), "--out", out)
    assert ended.code == 0, ended.said
    last = verified(out)
    assert last.group_by("pair_id").agg(pl.col("position").n_unique())["position"].to_list() == [1] * 4
    [cell] = verified_cells(out)
    compared = read_verified(out, cell)
    assert (compared.at, compared.rows["at_end"].all(), compared.n_pairs) == ("“end”", True, 4)
    assert set(compared.rows["position"]) == set(last["position"])
    again = attrib_batch_here("verify", out, "--pairs", "4", "--at", "all")
    assert again.code == 0, again.said
    both = verified(out)
    places = both.group_by("method", "pair_id").agg(n=pl.col("position").n_unique())
    assert places.filter(method="exact")["n"].to_list() == [1] * 4
    assert places.filter(method="exact-2")["n"].min() > 1
    everywhere = read_verified(out, cell).rows
    keys = ["pair_id", "component", "layer", "head", "position"]
    assert everywhere.select(keys).is_unique().all(), "what was measured twice counts once"
    assert everywhere["position"].n_unique() > 1
    same = everywhere.join(compared.rows, on=keys, suffix="_last")
    assert same.height == compared.rows.height
    assert same["exact"].equals(same["exact_last"].rename("exact")), "the first measurement stays"
