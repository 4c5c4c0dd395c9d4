"""`verify` on a tiny model: the sample, what is measured, and that it is the truth by an independent count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.execution.planning.verify import _sample
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.execution.workers.replica import ReplicaWorker
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, Component, load_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk
from tests.support import oracle
from tests.support.jobs import TinyJob, attrib_batch, read_scores
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
    ended = attrib_batch("run", job.write(methods=methods), "--out", out)
    assert ended.code == 0, ended.said
    ended = attrib_batch("verify", out, "--pairs", str(N_PAIRS), "--seed", "1")
    assert ended.code == 0, ended.said
    return job, out


def verified(out: Path) -> pl.DataFrame:
    return read_scores(out / "verification")


def test_each_method_is_verified_for_its_own_components_on_the_same_pairs(run: tuple[TinyJob, Path]) -> None:
    found = (
        verified(run[1]).group_by("method").agg(pl.col("component").unique().sort(), pl.col("pair_id").unique().sort())
    )
    by_method = {row["method"]: row for row in found.to_dicts()}
    assert {name: row["component"] for name, row in by_method.items()} == {
        "atp": ["mlp_out", "z"], "ig": ["z"], "noise": ["z"],
    }  # fmt: skip
    [ids] = {tuple(row["pair_id"]) for row in by_method.values()}
    assert len(ids) == N_PAIRS
    # Sampled by group: a pair comes with its mirror.
    assert all(pair_id ^ 1 in ids for pair_id in ids)


def test_methods_of_one_metric_and_direction_share_a_measurement(run: tuple[TinyJob, Path]) -> None:
    scores = verified(run[1]).filter(component="z")
    atp, ig, noise = (scores.filter(method=name)["score"].to_numpy() for name in ("atp", "ig", "noise"))
    assert (atp == ig).all()
    assert np.abs(atp - noise).max() > 0.01 * np.abs(atp).max()
    exact = run[1] / "verification/exact/scores/model=tiny/dataset=random"
    assert sorted(path.name for path in exact.iterdir()) == [
        "method=exact-logit_diff-denoise", "method=exact-logit_diff-noise",
    ]  # fmt: skip


def test_the_truth_is_that_of_replacing_one_activation_at_a_time(run: tuple[TinyJob, Path]) -> None:
    job, out = run
    scores = verified(out).filter(method="atp", component="z")
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
    assert attrib_batch("report", out).code == 0


def test_inputs_that_were_moved_are_named(run: tuple[TinyJob, Path], tmp_path: Path) -> None:
    """Everything is measured already, so that nothing is computed again."""
    job, out = run
    verify = ["verify", str(out), "--pairs", str(N_PAIRS), "--seed", "1"]
    pairs, model = job.pairs.rename(job.folder / "moved.parquet"), job.model.rename(job.folder / "moved")
    try:
        lost = CliRunner().invoke(app, verify)
        assert "Name the same file with --dataset random=PATH" in str(lost.exception)
        found = CliRunner().invoke(app, [*verify, "--dataset", f"random={pairs}", "--model", f"tiny={model}"])
        assert found.exit_code == 0, found.output
    finally:
        pairs.rename(job.pairs)
        model.rename(job.model)


def test_the_same_sample_is_not_measured_twice_and_another_is_refused(run: tuple[TinyJob, Path]) -> None:
    _, out = run
    before = verified(out)
    again = attrib_batch("verify", out, "--pairs", str(N_PAIRS), "--seed", "1")
    assert again.code == 0, again.said
    assert "resuming" in again.said
    assert verified(out).equals(before)
    other = attrib_batch("verify", out, "--pairs", str(N_PAIRS + 2), "--seed", "2")
    assert other.code == 2, other.said
    assert "remove it to verify anew" in " ".join(other.said.split())


def test_a_sample_of_pairs_whose_answers_are_token_ids_keeps_them(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=4)
    rows = [replace(pair, answers=(2,), wrong_answers=(3, 4)) for pair in PairTable.open(job.pairs).rows(0, 4)]
    write_pairs(job.pairs, rows, id_columns=("answers", "wrong_answers"))
    spec, store = load_spec(job.write()), Store(tmp_path / "out")
    worker = ReplicaWorker(spec, "tiny", store, {"random": PairTable.open(job.pairs).fingerprint()})
    worker.load()
    worker.score(Assignment((Chunk(Cell("tiny", "random", "atp"), 0, 4),)))
    sample = PairTable.open(_sample(store, spec, "random", n_pairs=4, seed=0))
    assert sample.rows(0, 4) == rows
    assert sample.id_columns == {"answers", "wrong_answers"}
