"""What is found out about a machine, question by question, with what to do."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from attrib_batch.errors import ModelError
from attrib_batch.models.sources import BundledModel
from attrib_batch.observe import doctor
from attrib_batch.observe.doctor import Finding, examine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def findings() -> dict[str, Finding]:
    found = examine()
    by_subject = {finding.subject: finding for finding in found}
    assert len(by_subject) == len(found), "each question once"
    return by_subject


def test_a_machine_that_runs_these_tests_is_fit(cache: Path) -> None:
    found = findings()
    assert [subject for subject, finding in found.items() if finding.needed and not finding.ok] == []
    assert found["torch"].detail == importlib.metadata.version("torch")
    assert found["cache folder"].detail == str(cache)
    assert list(cache.iterdir()) == [], "nothing is left there"


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(package: str) -> str:
        if package == "nnsight":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = findings()
    assert not found["nnsight"].ok
    assert found["nnsight"].needed
    assert "pip install 'attrib_batch[" in found["nnsight"].detail
    assert found["transformers"].ok


def test_a_python_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert not findings()["python"].ok
    assert "3.11 or newer is needed" in findings()["python"].detail


def test_a_cache_folder_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.write_text("in the way")
    found = findings()["cache folder"]
    assert (found.ok, found.needed) == (False, True)
    assert str(cache) in found.detail


def test_a_bundled_model_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_self: object) -> Path:
        raise ModelError("install the package that carries it")

    monkeypatch.setattr(BundledModel, "path", absent)
    found = findings()["bundled model smollm2-135m"]
    assert (found.ok, found.needed, found.detail) == (False, False, "install the package that carries it")
