"""The package as a wheel, built without a network and unpacked where no checkout is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, environment

BUILT_FROM = ("attrib_batch", "pyproject.toml", "README.md", "LICENSE")
"""All that a build reads; cluster.yaml mounts the same."""
BUILD_SECONDS = 120


@pytest.fixture(scope="session")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder a wheel is unpacked in, as pip unpacks it into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    subprocess.run(pip, cwd=source, capture_output=True, check=True, timeout=BUILD_SECONDS)
    [wheel] = folder.glob("attrib_batch-*.whl")
    shutil.unpack_archive(wheel, folder / "unpacked", "zip")
    return folder / "unpacked"


def wheel_environment(unpacked: Path) -> dict[str, str]:
    """The environment in which ``attrib_batch`` is the wheel's."""
    return environment() | {"PYTHONPATH": str(unpacked)}
