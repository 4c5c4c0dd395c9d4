"""A cache folder that cannot be written: a local model needs none, and the bundled one says so in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.errors import ModelError
from attrib_batch.models.bundled import bundled_folder
from attrib_batch.models.sources import ModelSource, cache_folder, find_model
from attrib_batch.spec import ModelSpec
from tests.support.jobs import TinyJob, attrib_batch, environment


@pytest.fixture
def unwritable(tmp_path: Path) -> str:
    """A folder that cannot be made, whoever tries: it lies below a file."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file/cache")


def local(folder: Path) -> ModelSpec:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return ModelSpec(id=str(folder), name="tiny", prepend_bos=False)


def test_a_local_model_needs_no_cache_folder(tmp_path: Path, unwritable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = local(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = find_model(model)
    monkeypatch.setenv("XDG_CACHE_HOME", unwritable)
    assert find_model(model) == expected


def test_a_remembered_hash_that_is_torn_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = local(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = find_model(model)
    for remembered in (cache_folder() / "hashes").iterdir():
        remembered.write_text('{"file": ')
    assert find_model(model) == expected


def test_the_bundled_model_needs_one(unwritable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", unwritable)
    with pytest.raises(ModelError, match=r"/file/cache/.* cannot be written: Not a directory\. Set XDG_CACHE_HOME to"):
        bundled_folder(ModelSource("bundled", "smollm2-135m", None, "sha256:0"))


@pytest.mark.slow
def test_the_command_says_so_in_one_sentence(tmp_path: Path, unwritable: str) -> None:
    job = TinyJob.make(tmp_path / "job", n_pairs=4)
    ended = attrib_batch(
        "pairs", "validate", job.pairs, "--model", "smollm2-135m", env=environment() | {"XDG_CACHE_HOME": unwritable}
    )
    assert ended.code == 2, ended.said
    assert "Set XDG_CACHE_HOME to a folder that can" in " ".join(ended.messages.split())
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_a_run_of_a_local_model_goes_through(tmp_path: Path, unwritable: str) -> None:
    job = TinyJob.make(tmp_path / "job", n_pairs=4)
    ended = attrib_batch(
        "run", job.write(), "--out", tmp_path / "out", "--local", env=environment() | {"XDG_CACHE_HOME": unwritable}
    )
    assert ended.code == 0, ended.said
