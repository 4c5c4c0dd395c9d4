"""What of a folder travels with a submitted job, and what never does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from attrib_batch.errors import RequestError
from attrib_batch.execution.ray import package
from attrib_batch.execution.ray.package import Package, local_paths, outside_paths, write_package
from attrib_batch.spec import SweepSpec, parse_spec

TRAVELS = [
    "attrib_batch/__init__.py",
    "attrib_batch/cli.py",
    "attrib_batch/py.typed",
    "constraints.txt",
    "datasets/README.md",
    "datasets/mine.parquet",
    "jobs/job.yaml",
    "models/tiny/config.json",
    "models/tiny/model.safetensors",
    "pyproject.toml",
]
STAYS = [
    ".env",
    ".git/config",
    ".venv/lib/torch.py",
    "attrib_batch/__pycache__/cli.pyc",
    "attrib_batch.egg-info/PKG-INFO",
    "build/lib/a.py",
    "datasets/other.parquet",
    "env/lib/torch.py",
    "env/pyvenv.cfg",
    "id.pem",
    "models/other.safetensors",
    "out/first/executions/1.json",
    "out/first/manifest.json",
    "out/first/scores/part-0-8.txt",
    "runs/a/manifest.json",
    "token.key",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = (tmp_path / "checkout").resolve()
    for name in TRAVELS + STAYS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def job(*datasets: str, model: str = "gpt2") -> SweepSpec:
    data: dict[str, Any] = {
        "name": "a",
        "models": [{"id": model, "name": "m", "prepend_bos": False}],
        "datasets": [{"id": f"d{index}", "path": path} for index, path in enumerate(datasets)],
        "methods": [{"id": "atp"}],
    }
    return parse_spec(data, source="test")


def pack(folder: Path, what: SweepSpec, job_file: Path | None = None) -> tuple[Package, dict[str, str]]:
    packed = write_package(folder, what, job_file or folder / "jobs/job.yaml", folder.parent / "package.zip")
    with zipfile.ZipFile(packed.path) as archive:
        return packed, {name: archive.read(name).decode() for name in archive.namelist()}


def test_code_and_what_the_job_reads_travel_and_nothing_else(folder: Path) -> None:
    packed, contents = pack(folder, job("datasets/mine.parquet", model="models/tiny"))
    assert sorted(contents) == TRAVELS
    assert all(text == name for name, text in contents.items())
    assert (packed.n_files, packed.job_file) == (len(TRAVELS), "jobs/job.yaml")
    assert packed.size == packed.path.stat().st_size


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = pack(folder, job("datasets/mine.parquet"))[0].path.read_bytes()
    for name in TRAVELS:
        os.utime(folder / name, (1, 1))
    assert pack(folder, job("datasets/mine.parquet"))[0].path.read_bytes() == first


def test_a_job_file_from_elsewhere_travels_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("elsewhere")
    packed, contents = pack(folder, job("datasets/mine.parquet"), tmp_path / "mine.yaml")
    assert contents[packed.job_file] == "elsewhere"
    assert packed.job_file == "submitted/mine.yaml"


def test_the_installed_package_travels_with_a_folder_that_has_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, contents = pack(folder, job("datasets/mine.parquet"))
    assert not packed.with_installed
    assert contents["attrib_batch/__init__.py"] == "attrib_batch/__init__.py"  # the checkout's own, not the installed
    # As in a virtual environment inside the folder, whose packages do not travel with it.
    shutil.move(folder / "attrib_batch", folder / ".venv/lib/attrib_batch")
    monkeypatch.setattr(package, "INSTALLED", folder / ".venv/lib/attrib_batch")
    packed, contents = pack(folder, job("datasets/mine.parquet"))
    assert packed.with_installed
    assert {name: text for name, text in contents.items() if name.startswith("attrib_batch/")} == {
        name: name for name in TRAVELS if name.startswith("attrib_batch/")
    }
    assert packed.n_files == len(contents)


@pytest.mark.slow
def test_what_travels_runs_by_itself(tmp_path: Path) -> None:
    """The zip is unpacked where no other copy of the package comes first, as a node of a cluster does."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/job.yaml").write_text("{}")
    packed = write_package(
        tmp_path / "folder", job("s3://bucket/a.parquet"), tmp_path / "folder/job.yaml", tmp_path / "z"
    )
    shutil.unpack_archive(packed.path, tmp_path / "node", "zip")
    code = "import attrib_batch.report.page as page; from attrib_batch.cli.app import app; print(page.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "node", capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "node/attrib_batch/report/page.py")
    assert (tmp_path / "node/attrib_batch/report/templates/page.html.j2").is_file()


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").symlink_to(tmp_path)
    assert "secret" not in pack(folder, job("datasets/mine.parquet"))[1].values()


def test_what_is_not_in_the_folder_is_told(folder: Path, tmp_path: Path) -> None:
    inside, absolute = "datasets/mine.parquet", str(folder / "datasets/mine.parquet")
    what = job(inside, absolute, "../other.parquet", "s3://bucket/a.parquet", "hf://datasets/a.parquet")
    assert local_paths(what, folder) == [inside, absolute, "../other.parquet"]
    # An absolute path means this machine's file even where a copy of it travels.
    assert outside_paths(what, folder) == [absolute, "../other.parquet"]
    assert outside_paths(job(inside, model=str(tmp_path)), folder) == [str(tmp_path)]
    assert outside_paths(job(inside, model="openai-community/gpt2"), folder) == []


def test_too_much_is_refused_with_what_is_largest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    assert package.LARGEST_PACKAGE == DASHBOARD_CLIENT_MAX_SIZE
    monkeypatch.setattr(package, "LARGEST_PACKAGE", 1 << 20)
    (folder / "jobs/notes.txt").write_bytes(os.urandom(2 << 20))
    with pytest.raises(RequestError, match=r"larger than the 1 MiB that Ray takes. Largest: jobs/notes.txt \(2 MiB\)"):
        pack(folder, job("datasets/mine.parquet"))
