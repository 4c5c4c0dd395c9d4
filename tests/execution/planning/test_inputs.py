"""The datasets and models of a run whose paths lead nowhere any more: found by name and content, or asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from attrib_batch.errors import DatasetError, ModelError, RequestError, ResumeMismatchError
from attrib_batch.execution.planning.inputs import InputLocations, find_inputs
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.spec import SweepSpec, parse_spec
from attrib_batch.tables import Manifest
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import in_words


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Path]:
    """The manifest of a run in a copy of a folder that is gone, and the folder, which is the working one now.

    Nothing of the model but its configuration is read, so that any weights do.
    """
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    (folder / "models/mine").mkdir(parents=True)
    (folder / "models/mine/config.json").write_text('{"model_type": "llama"}')
    (folder / "models/mine/model.safetensors").write_bytes(b"weights")
    write_pairs(folder / "data/pairs.parquet", in_words(random_pairs(4, 9, 4)))
    shutil.copytree(folder, copy)
    job = {
        "name": "job",
        "models": [{"id": "models/mine", "name": "tiny", "prepend_bos": False}],
        "datasets": [{"id": "random", "path": "data/pairs.parquet"}],
        "methods": [{"id": "atp"}],
    }
    monkeypatch.chdir(copy)
    opened = open_run(parse_spec(job, source="job"), tmp_path / "out")
    opened.lease.release()
    shutil.rmtree(copy)
    monkeypatch.chdir(folder)
    return opened.manifest, folder


def found(manifest: Manifest, **places: dict[str, str]) -> tuple[Path, Path]:
    job = find_inputs(manifest, SweepSpec.model_validate(manifest.job), InputLocations(**places))
    return Path(job.datasets[0].path), Path(job.models[0].id)


def test_inputs_are_found_as_the_job_named_them(run: tuple[Manifest, Path]) -> None:
    manifest, folder = run
    assert manifest.named == {"datasets": {"random": "data/pairs.parquet"}, "models": {"tiny": "models/mine"}}
    assert not Path(manifest.job["datasets"][0]["path"]).exists()
    assert found(manifest) == (folder / "data/pairs.parquet", folder / "models/mine")


def test_inputs_that_are_not_found_are_asked_for(
    run: tuple[Manifest, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, folder = run
    monkeypatch.chdir(tmp_path)
    before = manifest.job["datasets"][0]["path"]
    with pytest.raises(DatasetError, match=f"neither {before} nor data/pairs.parquet found .* --dataset random=PATH"):
        found(manifest)
    datasets = {"random": str(folder / "data/pairs.parquet")}
    with pytest.raises(ModelError, match=r"nor models/mine found .* --model tiny=PATH"):
        found(manifest, datasets=datasets)
    models = {"tiny": "folder/models/mine"}
    assert found(manifest, datasets=datasets, models=models) == (folder / "data/pairs.parquet", folder / "models/mine")
    with pytest.raises(DatasetError, match=r"absent.parquet not found"):
        found(manifest, datasets={"random": "absent.parquet"})


def test_other_content_is_refused_wherever_it_lies(run: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, folder = run
    path = folder / "data/pairs.parquet"
    path.rename(tmp_path / "kept.parquet")
    write_pairs(path, in_words(random_pairs(4, 9, 4, seed=1)))
    with pytest.raises(ResumeMismatchError, match=r"pairs.parquet has changed since the run.* --dataset random=PATH"):
        found(manifest)
    datasets = {"random": str(tmp_path / "kept.parquet")}
    assert found(manifest, datasets=datasets)[0] == tmp_path / "kept.parquet"
    (folder / "models/mine/model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ResumeMismatchError, match=r"not the model that the run was made with .* --model tiny=PATH"):
        found(manifest, datasets=datasets)


def test_names_that_the_run_does_not_have(run: tuple[Manifest, Path]) -> None:
    with pytest.raises(RequestError, match=r"--dataset ID=PATH: the run has no 'other'; it has random"):
        found(run[0], datasets={"other": "x"})
    with pytest.raises(RequestError, match=r"--model NAME=PATH: the run has no 'other'; it has tiny"):
        found(run[0], models={"other": "x"})


def test_a_manifest_of_before_has_absolute_paths_alone(run: tuple[Manifest, Path]) -> None:
    manifest, _ = run
    manifest = manifest.model_copy(update={"named": {}})
    with pytest.raises(DatasetError, match=r"/copy/data/pairs.parquet not found"):
        found(manifest)
