"""What is found out about a machine, question by question, with what to do."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel's driver says of itself, with one card."""
    folder = tmp_path / "nvidia"
    (folder / "gpus/0000:3b:00.0").mkdir(parents=True)
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@builder)  Tue\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    monkeypatch.setattr(doctor, "PROC_DRIVER", folder)
    return folder


def test_a_cpu_build_of_torch_on_a_machine_with_a_gpu_is_told(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = findings()["CUDA"]
    assert (found.ok, found.needed) == (False, False)
    assert f"NVIDIA devices (driver 580.95.05), and torch {torch.__version__} is built for the CPU" in found.detail
    (driver / "gpus/0000:3b:00.0").rmdir()
    assert "CUDA" not in findings(), "a driver without a device wants nothing"


def test_gpus_are_named_with_their_memory_and_what_torch_is_built_for(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is at hand: torch's answers are made up."""
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(doctor, "driver_cuda", lambda: "12.8")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: card)
    found = findings()
    assert (found["GPUs"].ok, found["GPUs"].detail[:7]) == (True, "2 found")
    assert found["GPU cuda:1"].detail == "NVIDIA H100 80GB HBM3, 80 GiB, compute capability 9.0"
    assert found["CUDA"].detail == "torch is built for CUDA 13.0; the NVIDIA driver is 580.95.05 and can run CUDA 12.8"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not findings()["CUDA"].ok
    assert "The driver may be too old for that CUDA" in findings()["CUDA"].detail


def test_what_cuda_the_driver_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's library is asked; here one that is made up answers, and one that is not there."""

    def get_version(place: Any) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = 12080
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(cuDriverGetVersion=get_version))
    assert doctor.driver_cuda() == "12.8"

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert doctor.driver_cuda() is None


def test_a_bundled_model_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_self: object) -> Path:
        raise ModelError("install the package that carries it")

    monkeypatch.setattr(BundledModel, "path", absent)
    found = findings()["bundled model smollm2-135m"]
    assert (found.ok, found.needed, found.detail) == (False, False, "install the package that carries it")
