"""Whatever is wrong with a request, the command line says it in one message and exits with 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from attrib_batch.attribution import metrics
from attrib_batch.cli.app import app
from attrib_batch.errors import AttribBatchError, ExitCode
from tests.support.jobs import TinyJob, attrib_batch, attrib_batch_here
from tests.support.own_package import install_package
from tests.support.shared_ray import SharedRay


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=4)


def refused(*arguments: object) -> str:
    """The message of a command that must be refused; nothing of it may be a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, AttribBatchError), result.output
    assert result.exception.exit_code is ExitCode.BAD_REQUEST
    return str(result.exception)


def changed_model(job: TinyJob, **changes: Any) -> list[dict[str, Any]]:
    return [{"id": str(job.model), "name": "tiny", "prepend_bos": False, **changes}]


BAD_JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"color": 1}, "color: unknown key; known here: name, models, datasets"),
    "unknown nested key": ({"datasets": [{"id": "a", "path": "b", "size": 1}]}, r"datasets\[0\].size: unknown key"),
    "no models": ({"models": []}, "models: .*at least 1"),
    "BOS not said": ({"models": [{"id": "x"}]}, r"models\[0\].prepend_bos: missing; expected prepend"),
    "unknown method": ({"methods": [{"id": "magic"}]}, r"methods\[0\].kind: expected the kind .*not 'magic'"),
    "unknown component": (
        {"methods": [{"id": "atp", "components": ["zz"]}]}, r"methods\[0\].components\[0\]: .*'z'.*not 'zz'",
    ),
    "component twice": ({"methods": [{"id": "atp", "components": ["z", "z"]}]}, "z more than once"),
    "unknown metric": ({"methods": [{"id": "atp", "metric": "vibes"}]}, "vibes"),
    "zero chunk": ({"chunk_pairs": 0}, "chunk_pairs: .*greater than or equal to 1, not 0"),
    "text for a number": ({"chunk_pairs": "many"}, "chunk_pairs: .*integer.*'many'"),
    "same id twice": ({"methods": [{"id": "atp"}, {"id": "atp"}]}, "two methods are both called 'atp'"),
    "id that names no folder": ({"datasets": [{"id": "a/b", "path": "x"}]}, "cannot name a folder"),
    "missing name": ({"name": None}, "name: "),
    "dataset that reads as a number": (
        {"datasets": [{"id": "007", "path": "x"}]}, r"datasets\[0\].id: .*, such as 'id-007', not '007'",
    ),
    "method that reads as a date": (
        {"methods": [{"id": "2024-01-01", "kind": "atp"}]}, r"methods\[0\].id: .* a date .* 'id-2024-01-01'",
    ),
    "model that reads as a number": (
        {"models": [{"id": "x", "name": "1e5", "prepend_bos": False}]}, r"models\[0\].name: .*'id-1e5', not '1e5'",
    ),
    "model whose folder reads as a number": (
        {"models": [{"id": "org/2024", "prepend_bos": False}]}, r"models\[0\]: .*, '2024', .*: set name.* id-2024",
    ),
    **{
        f"workers {key}: {value}": (
            {"models": [{"id": "x", "prepend_bos": False, "workers": {key: value}}]},
            rf"models\[0\].workers.*: .*{expected}",
        )
        for key, value, expected in (
            ("count", 0, "expected a whole number of at least 1, or auto, not 0"),
            ("count", "many", "expected a whole number of at least 1, or auto, not 'many'"),
            ("count", 1.5, "expected a whole number of at least 1, or auto, not 1.5"),
            ("memory", "much", "expected a number of bytes, or a size such as 8GB or 8GiB, not 'much'"),
            ("memory", "0GB", "a size above 0"),
            ("memory", -1, "expected a number of bytes"),
            ("resources", {"disk": 0}, "greater than 0"),
            ("resources", {"disk": 1.5}, "fractions below 1 and whole numbers, not 1.5"),
            ("resources", {"GPU": 1}, "resources are custom ones; GPU has a key of its own: gpus"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_JOBS)
def test_bad_job_files(case: str, job: TinyJob, tmp_path: Path) -> None:
    changes, expected = BAD_JOBS[case]
    import re

    message = refused("run", job.write("bad.yaml", **changes), "--out", tmp_path / "out")
    assert "bad.yaml: " in message
    assert re.search(expected, message), message
    assert not (tmp_path / "out").exists()


def test_job_files_that_are_none(job: TinyJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "cannot read the job file" in refused("run", tmp_path / "none.yaml", "--out", out)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    assert "is not YAML" in refused("plan", broken)
    assert "a job is a mapping" in refused("plan", job.write_data(["a"], "list.yaml"))


def test_bad_datasets(job: TinyJob, tmp_path: Path) -> None:
    def run(path: Path) -> str:
        return refused("run", job.write(datasets=[{"id": "d", "path": str(path)}]), "--out", tmp_path / "out")

    assert "no such file" in run(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    assert "not a readable Parquet file" in run(tmp_path / "text.parquet")
    table = pq.read_table(job.pairs)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    assert "has no rows" in run(tmp_path / "empty.parquet")
    pq.write_table(table.rename_columns({"clean": "prompt"}), tmp_path / "renamed.parquet")
    message = run(tmp_path / "renamed.parquet")
    assert "clean" in message
    assert "prompt" in message
    assert "pairs import" in message
    pq.write_table(table.set_column(1, "clean", pa.array(range(4))), tmp_path / "typed.parquet")
    assert "clean" in run(tmp_path / "typed.parquet")
    twice = table.set_column(0, "pair_id", pa.array([0, 1, 1, 2]))
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert "pair_id 1 stands in row 1 and again in row 2" in run(tmp_path / "twice.parquet")
    pq.write_table(table.set_column(0, "pair_id", pa.array([0, None, 1, 2])), tmp_path / "null.parquet")
    assert "pair_id is null in row 1" in run(tmp_path / "null.parquet")
    assert not (tmp_path / "out").exists()


def test_unknown_model(job: TinyJob, tmp_path: Path) -> None:
    path = job.write(models=[{"id": "nobody/nothing", "prepend_bos": False}])
    message = refused("run", path, "--out", tmp_path / "out")
    assert "'nobody/nothing': not a bundled name" in message
    assert not (tmp_path / "out").exists()


def test_bad_outputs(job: TinyJob, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "is a file; name a folder" in refused("run", job.write(), "--out", file)
    (tmp_path / "other/scores").mkdir(parents=True)
    assert "this is not the directory of a run" in refused("run", job.write(), "--out", tmp_path / "other")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/manifest.json").write_text("{")
    assert "is not a run's manifest" in refused("run", job.write(), "--out", tmp_path / "torn")


def test_an_output_that_cannot_be_written(job: TinyJob, tmp_path: Path) -> None:
    """Root may write anywhere, so the folder is below a file: making it fails for everyone."""
    (tmp_path / "file").touch()
    message = refused("run", job.write(), "--out", tmp_path / "file/out")
    assert "cannot write" in message
    assert "--out" in message


@pytest.mark.parametrize("verb", ["status", "summarize", "report", "export"])
def test_a_folder_that_is_no_run(verb: str, tmp_path: Path) -> None:
    assert "manifest" in refused(verb, tmp_path)


def test_more_workers_than_the_machine_holds(shared_ray: SharedRay, job: TinyJob, tmp_path: Path) -> None:
    cpus = 3
    path = job.write(models=changed_model(job, workers={"count": 2, "cpus": cpus}), chunk_pairs=1)
    ended = shared_ray.run("run", path, "--out", tmp_path / "out")
    assert ended.code == 2, ended.said
    assert f"2 workers ask for {2 * cpus} CPUs together, and Ray has" in " ".join(ended.said.split())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"memory": "900TB"}, "1 workers ask for 9e+05 GB of memory together, and Ray has"),
        ({"resources": {"fast_disk": 2}}, "1 workers ask for 2 fast_disk together, and Ray has 0. Lower workers.count"),
    ],
)
def test_what_no_machine_has(
    asked: dict[str, Any], message: str, shared_ray: SharedRay, job: TinyJob, tmp_path: Path
) -> None:
    ended = shared_ray.run("run", job.write(models=changed_model(job, workers=asked)), "--out", tmp_path / "out")
    assert ended.code == 2, ended.said
    assert message in " ".join(ended.said.split())


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have mps")
def test_a_device_that_this_machine_lacks(job: TinyJob, tmp_path: Path) -> None:
    path = job.write(models=changed_model(job, device="mps"))
    message = refused("run", path, "--out", tmp_path / "out")
    assert f"model {str(job.model)!r}, device 'mps': this machine" in message
    assert "it has cpu" in message
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """A model whose attention and MLP run in parallel: it has no resid_mid."""
    return TinyJob.make(tmp_path_factory.mktemp("parallel"), n_pairs=4, architecture="gpt_neox")


LACKING = [{"id": "a", "kind": "atp"}, {"id": "b", "kind": "atp", "components": ["resid_mid"]}]


@pytest.mark.parametrize("verb", ["run", "plan", "pairs validate"])
def test_a_component_the_model_lacks(verb: str, parallel: TinyJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = refused(*verb.split(), parallel.write(methods=LACKING), *(["--out", out] if verb == "run" else []))
    assert "model 'tiny', method 'b': gpt_neox has no resid_mid" in message
    assert "Components it has: resid_pre, q, k, v, z, attn_out, mlp_out, resid_post" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "its weights are quantised, quantization_config says awq"),
        ({"is_causal": False}, "its configuration says is_causal: false, so its attention sees later positions"),
        ({"model_type": "mpt"}, "architecture 'mpt' is not known; known: bloom, cohere"),
    ],
)
def test_what_a_configuration_rules_out(changes: dict[str, Any], expected: str, job: TinyJob, tmp_path: Path) -> None:
    folder = shutil.copytree(job.model, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    message = refused("run", job.write(models=changed_model(job, id=str(folder))), "--out", tmp_path / "out")
    assert f"model {str(folder)!r}: {expected}" in message
    assert not (tmp_path / "out").exists()


BAD_METRICS = {
    "missing": ("import no_such_package", "cannot be loaded from own_metric:own: ModuleNotFoundError: No module named"),
    "raises": (
        "def own(*_): raise KeyError('missing thing')",
        "it raises KeyError: 'missing thing'. A metric is a fun",
    ),
    "shape": ("def own(logits, *_): return logits.sum()", r"gave the shape (), expected (2,). A metric is a function"),
    "gradient": ("def own(logits, *_): return logits.argmax(-1)", "has no gradient"),
    "NaN": ("def own(logits, *_): return logits[:, 0] * float('nan')", "it gives [nan, nan]"),
}


@pytest.mark.parametrize("case", BAD_METRICS)
def test_a_metric_that_cannot_be_used(case: str, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, expected = BAD_METRICS[case]
    install_package(tmp_path / "packages", "own_metric", source, "own = own_metric:own")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(metrics, "_loaded", dict(metrics._loaded))
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)
    path = job.write(methods=[{"id": "atp", "metric": "own"}])
    for arguments in (("plan", path), ("run", path, "--out", tmp_path / "out")):
        message = refused(*arguments)
        assert "metric 'own'" in message
        assert expected in message
    assert not (tmp_path / "out").exists()
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)


@pytest.mark.slow
def test_a_run_that_only_its_workers_can_refuse_is_tried_once_and_blocks_nothing(job: TinyJob, tmp_path: Path) -> None:
    """What is missing shows when weights are loaded; the mended job has another dtype, and goes on in the same OUT."""
    folder, out = shutil.copytree(job.model, tmp_path / "own"), tmp_path / "out"
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "modeling_own.py").write_text("import no_such_package\n\nclass OwnForCausalLM: ...\n")
    path = job.write(models=changed_model(job, id=str(folder), trust_remote_code=True))
    ended = attrib_batch_here("run", path, "--out", out)
    assert ended.code == 2, ended.said
    assert "a package is missing" in ended.said
    assert "no_such_package" in ended.said
    assert "could not start" not in ended.said
    assert "Traceback" not in ended.said
    ended = attrib_batch_here("run", job.write(models=changed_model(job, dtype="bfloat16")), "--out", out)
    assert ended.code == 0, ended.said
    assert not list(out.glob("failures/**/*.parquet"))


@pytest.mark.slow
def test_errors_reach_the_shell_as_one_message_and_a_code() -> None:
    ended = attrib_batch_here("run", "none.yaml", "--out", "x")
    assert ended.code == 2
    assert ended.said.strip() == "error: cannot read the job file none.yaml: No such file or directory"
    assert attrib_batch("no-such-verb").code == 2
    assert attrib_batch("run").code == 2
    assert attrib_batch("--help").code == 0
    assert attrib_batch("--version").said.strip() == "0.1.0"
