"""Scoring pairs by one call: whatever form model and pairs come in, the tables are those of the command line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import attrib_batch as ab
from attrib_batch.errors import DatasetError, JobError, ModelError, RequestError
from attrib_batch.models import load
from attrib_batch.models.load import load_model
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import MethodSpec
from tests.support.jobs import TinyJob, attrib_batch_here, run_script, start_script
from tests.support.near import assert_near, estimated_terms
from tests.support.same_tables import Tables, assert_same_numbers
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

N_PAIRS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def by_command(job: TinyJob) -> Tables:
    """What the command line makes of the job."""
    ended = attrib_batch_here("run", job.write(), "--out", job.folder / "out")
    assert ended.code == 0, ended.said
    return Tables.read(job.folder / "out", model="tiny")


def attribute(model: Any, pairs: Any, out: Path, **options: Any) -> ab.Run:
    return ab.attribute(model, pairs, out=out, name="random", progress=False, **options)


def as_rows(job: TinyJob) -> list[dict[str, Any]]:
    return [asdict(pair) for pair in PairTable.open(job.pairs).rows(0, N_PAIRS)]


def as_pandas(job: TinyJob) -> pd.DataFrame:
    return pd.DataFrame(as_rows(job))


FORMS = {
    "path": lambda job: job.pairs,
    "polars": lambda job: pl.read_parquet(job.pairs),
    "lazy": lambda job: pl.scan_parquet(job.pairs),
    "arrow": lambda job: pq.read_table(job.pairs),
    "pandas": as_pandas,
    "rows": as_rows,
}


def same(out: Path, theirs: Tables, model: str = "model") -> None:
    assert_same_numbers(Tables.read(out, model=model), theirs)


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_any_form(form: str, job: TinyJob, by_command: Tables, tmp_path: Path) -> None:
    run = attribute(str(job.model), FORMS[form](job), tmp_path)
    same(tmp_path, by_command)
    assert run.failures().collect().is_empty()


def test_a_transformers_model_with_its_tokenizer(job: TinyJob, by_command: Tables, tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"]()
    run = attribute(model, job.pairs, tmp_path, tokenizer=tiny_tokenizer())
    [name] = [item["name"] for item in run.manifest.job["models"]]
    same(tmp_path, by_command, name)
    assert not model.training
    # The same weights go on, others do not.
    assert attribute(model, job.pairs, tmp_path, tokenizer=tiny_tokenizer()).result.tally.scored == 0
    model.lm_head.weight.data += 0.1
    with pytest.raises(RequestError, match=f"model {name}, weights: was"):
        attribute(model, job.pairs, tmp_path, tokenizer=tiny_tokenizer())


def test_an_nnsight_model(job: TinyJob, by_command: Tables, tmp_path: Path) -> None:
    from nnsight.modeling.transformers import TransformersModel

    model = TransformersModel(ARCHITECTURES["llama"](), task="text-generation", tokenizer=tiny_tokenizer())
    run = attribute(model, job.pairs, tmp_path)
    same(tmp_path, by_command, run.manifest.job["models"][0]["name"])
    assert run.verify(2, progress=False).height, "the run keeps the model that it was made with"


def test_a_model_is_loaded_once_for_a_run_and_what_verifies_it(
    job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(load, "load_model", lambda spec, **given: loaded.append(spec.id) or load_model(spec, **given))
    run = attribute(str(job.model), job.pairs, tmp_path, limit=8, verify=2)
    for pairs in (4, 6):  # groups are of two
        run.verify(pairs, progress=False)
        assert run.result.tally.scored == 2
    assert loaded == [str(job.model)]
    ab.open_run(tmp_path).verify(8, progress=False)
    assert len(loaded) == 2, "another object has nothing in memory"


def test_methods_of_any_form(job: TinyJob, tmp_path: Path) -> None:
    methods = [
        "atp",
        {"id": "noise", "kind": "atp", "direction": "noise"},
        MethodSpec(id="ig", kind="atp_ig", ig_steps=2),
    ]
    run = attribute(str(job.model), job.pairs, tmp_path, methods=methods, components=["q", "z"], limit=4, verify=2)
    found = run.scores().group_by("method").agg(pl.col("component").cast(pl.String).unique().sort()).collect()
    assert dict(found.iter_rows()) == {"atp": ["q", "z"], "noise": ["q", "z"], "ig": ["z"]}
    assert {stage.name for stage in run.manifest.stages} == {"scoring", "verification"}
    assert run.agreement_path.exists()


def test_token_ids_as_answers(job: TinyJob, by_command: Tables, tmp_path: Path) -> None:
    tokenizer, rows = tiny_tokenizer(), as_rows(job)
    for row in rows:
        for column in ("answers", "wrong_answers"):
            row[column] = [tokenizer(text)["input_ids"][0] for text in row[column]]
    attribute(str(job.model), rows, tmp_path)
    same(tmp_path, by_command)


def test_without_a_folder_the_run_is_kept_and_says_where(job: TinyJob) -> None:
    run = ab.attribute(str(job.model), job.pairs, limit=2, progress=False)
    assert ab.open_run(run.path).scores().collect().equals(run.scores().collect())


PAIR = {"clean": "w1 w2", "corrupted": "w1 w3", "answers": [" w4"], "wrong_answers": [" w5"]}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([], "there is no row"),
        ([{"clean": "a"}], "row 0 has no corrupted, answers, wrong_answers; it has clean"),
        ([PAIR, {**PAIR, "clean": 3}], "row 1, clean: expected text, not 3"),
        ([{**PAIR, "answers": [1.5]}], "row 0, answers: expected texts or token ids, not 1.5"),
        ([{**PAIR, "answers": [1]}, PAIR], "answers mixes texts and token ids"),
        ([{**PAIR, "roles": [{"name": "IO"}]}], "row 0, roles: expected name, start and end"),
        ([{**PAIR, "pair_id": "x"}], "row 0, pair_id: expected a whole number, not 'x'"),
        (3, "expected a path, a Polars or pandas frame, an Arrow table or a list of dicts, not a int"),
        ("absent.parquet", "absent.parquet"),
    ],
)
def test_pairs_that_are_none(pairs: Any, says: str, job: TinyJob, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=says):
        attribute(str(job.model), pairs, tmp_path / "out")


def test_models_that_are_none(job: TinyJob, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pass its tokenizer too"):
        attribute(ARCHITECTURES["gpt2"](), job.pairs, tmp_path)
    with pytest.raises(ModelError, match="not a dict"):
        attribute({}, job.pairs, tmp_path)
    with pytest.raises(JobError, match=r"methods\[0\].kind: "):
        attribute(str(job.model), job.pairs, tmp_path, methods=["nothing"])


SCRIPT = """
import sys, time
import attrib_batch as ab
from attrib_batch.attribution.metrics import register_metric, logit_diff

def slow(logits, clean, answers):
    time.sleep(0.2)
    return logit_diff(logits, clean, answers)

if __name__ == "__main__":
    sys.modules["ray"] = None  # as where it is not installed
    register_metric("slow", slow)
    model, pairs, out = sys.argv[1:]
    try:
        run = ab.attribute(model, pairs, out=out, metric="slow", chunk_pairs=2, batch_tokens=4)
    except KeyboardInterrupt as stopped:
        print("interrupted:", stopped)
        sys.exit(9)
    assert sys.modules["ray"] is None
    print("scored", run.result.tally.scored)
"""


@pytest.mark.slow
def test_an_interrupt_leaves_what_is_committed_and_the_same_call_goes_on(job: TinyJob, tmp_path: Path) -> None:
    import signal
    import time

    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    with start_script(script, job.model, job.pairs, out) as run:
        deadline = time.monotonic() + 100
        while not list(out.glob("scores/**/*.parquet")):
            assert run.poll() is None, run.said()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 9, said
    assert "interrupted: stopped with" in said
    committed = len(list(out.glob("scores/**/*.parquet"))) * 2
    assert 0 < committed < N_PAIRS
    again = run_script(script, job.model, job.pairs, out)
    assert again.code == 0, again.said
    assert f"scored {N_PAIRS - committed}" in again.output


def test_whole_answers_beside_answers_of_one_token(tmp_path: Path) -> None:
    """A pair fails with the methods that cannot take its answers, and with no others; a sample is measured alike."""
    prompt = {"clean": "w1 w2 w3", "corrupted": "w1 w4 w3"}
    pairs = [
        {**prompt, "answers": [" Mary John"], "wrong_answers": [" Paul Anna"]},
        {**prompt, "answers": [" Mary"], "wrong_answers": [" Paul"]},
        {**prompt, "answers": [" Mary John"], "wrong_answers": [" Paul"]},
    ]
    whole = {"id": "whole", "kind": "atp", "metric": "sequence_logprob_diff"}
    run = attribute(ARCHITECTURES["llama"](), pairs, tmp_path, tokenizer=tiny_tokenizer(), methods=["atp", whole])
    failed = run.failures().collect().select("method", "pair_id", "error").sort("method", "pair_id").rows()
    assert failed == [
        ("atp", 0, "multi_token_answer"),
        ("atp", 2, "multi_token_answer"),
        ("whole", 2, "unequal_answers"),
    ]
    scores = run.scores().collect()
    assert set(scores["position"].unique()) == {0, 1, 2}
    ours, theirs = (
        scores.filter((pl.col("pair_id") == 1) & (pl.col("method") == name)).sort("layer", "head", "position")["score"]
        for name in ("atp", "whole")
    )
    metrics = run.baselines(method="atp").select("clean_metric", "corrupted_metric").collect().to_numpy()
    assert_near(ours, theirs, estimated_terms(ours.to_numpy(), metrics))
    assert set(run.verify(1)["method"]) == {"atp", "whole"}


def test_ablations_need_no_corrupted_prompt(tmp_path: Path) -> None:
    pairs = [
        {"clean": f"w1 w2 w{last}", "answers": [" Mary"], "wrong_answers": [" Paul"], "template": "t"}
        for last in range(3, 8)
    ]
    model = ARCHITECTURES["llama"]()
    with pytest.raises(DatasetError, match="row 0 has no corrupted"):
        attribute(model, pairs, tmp_path / "no", tokenizer=tiny_tokenizer())
    run = attribute(model, pairs, tmp_path / "out", tokenizer=tiny_tokenizer(), reference="zero")
    assert run.failures().collect().is_empty()
    baselines = run.baselines(method="atp").collect()
    assert (baselines["clean_metric"] != baselines["corrupted_metric"]).all()
    assert set(run.scores().collect()["position"]) == {0, 1, 2}
    # What is measured is the same kind of replacement.
    assert run.verify(2)["method"].unique().to_list() == ["atp"]
    assert {item["reference"] for item in run.manifest.stage("verification").job["methods"]} == {"zero"}  # type: ignore[union-attr]
    assert "zero ablation" in Path(run.report()).read_text(encoding="utf-8")


def test_a_table_without_corrupted_prompts_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    table = tmp_path / "pairs.parquet"
    pl.DataFrame({"clean": ["w1 w2"], "answers": [[" Mary"]], "wrong_answers": [[" Paul"]]}).write_parquet(table)
    model, tokenizer = ARCHITECTURES["llama"](), tiny_tokenizer()
    zero = {"id": "zero", "kind": "atp", "reference": "zero"}
    with pytest.raises(DatasetError, match="has no column corrupted"):
        attribute(model, table, tmp_path / "no", tokenizer=tokenizer, methods=[zero, "atp"])
    run = attribute(model, table, tmp_path / "out", tokenizer=tokenizer, methods=[zero])
    assert run.result.exit_code == 0


def test_the_token_that_is_prepended(tmp_path: Path) -> None:
    pairs = [{"clean": "w1 w2", "corrupted": "w1 w3", "answers": [" Mary"], "wrong_answers": [" Paul"]}]
    model = ARCHITECTURES["llama"]()
    found = {
        token: attribute(
            model, pairs, tmp_path / str(token), tokenizer=tiny_tokenizer(), prepend_bos=True, bos_token=token
        )
        .baselines()
        .collect()["clean_metric"][0]
        for token in (None, "<bos>", "w9")
    }
    assert found[None] == found["<bos>"] != found["w9"]
    with pytest.raises(JobError, match="bos_token is what prepend_bos: true prepends"):
        attribute(model, pairs, tmp_path / "no", tokenizer=tiny_tokenizer(), bos_token="w9")  # noqa: S106
