"""A wheel works alone: in an empty folder, without a checkout. The demo from a wheel is in test_end_to_end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, TinyJob, attrib_batch, read_table
from tests.support.wheel import BUILT_FROM, wheel_environment

DATA = {
    "attrib_batch/py.typed",
    "attrib_batch/demo/demo.yaml",
    "attrib_batch/demo/ioi.parquet",
    "attrib_batch/demo/ioi_tutorial.parquet",
    "attrib_batch/report/templates/page.html.j2",
    "attrib_batch/report/templates/style.css",
}


def test_it_holds_the_package_with_its_data_and_nothing_else(unpacked_wheel: Path) -> None:
    files = {str(path.relative_to(unpacked_wheel)) for path in unpacked_wheel.rglob("*") if path.is_file()}
    assert files >= DATA
    assert {name.partition("/")[0].partition("-")[0] for name in files} == {"attrib_batch"}


def test_doctor_needs_no_checkout(unpacked_wheel: Path, tmp_path: Path) -> None:
    ended = attrib_batch("doctor", cwd=tmp_path, env=wheel_environment(unpacked_wheel), fresh=True)
    assert ended.code == 0, ended.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel_and_holds_no_half_of_the_tests(unpacked_wheel: Path, tmp_path: Path) -> None:
    source, sdist = tmp_path / "source", tmp_path / "sdist"
    source.mkdir()
    for name in (*BUILT_FROM, "MANIFEST.in", "tests"):
        (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", build, sdist], cwd=source, capture_output=True, check=True, timeout=120
    )
    [archive] = sdist.glob("attrib_batch-*.tar.gz")
    shutil.unpack_archive(archive, sdist)
    [inner] = (path for path in sdist.iterdir() if path.is_dir())
    assert not (inner / "tests").exists()
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path]
    subprocess.run(pip, cwd=inner, capture_output=True, check=True, timeout=120)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        built = {name for name in opened.namelist() if name.startswith("attrib_batch/")}
    # What the other tests of this module imported from there was compiled there.
    there = (path for path in (unpacked_wheel / "attrib_batch").rglob("*.*") if "__pycache__" not in path.parts)
    assert built == {str(path.relative_to(unpacked_wheel)) for path in there}


@pytest.mark.slow
def test_a_job_is_run_and_reported_in_an_empty_folder(unpacked_wheel: Path, tmp_path: Path) -> None:
    job, folder, environment = (
        TinyJob.make(tmp_path / "job", n_pairs=8),
        tmp_path / "empty",
        wheel_environment(unpacked_wheel),
    )
    folder.mkdir()
    where = subprocess.run(
        [sys.executable, "-c", "import attrib_batch; print(attrib_batch.__file__)"],
        cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert where.stdout.strip() == str(unpacked_wheel / "attrib_batch/__init__.py")
    for verb in (["run", job.write(), "--out", "out", "--local"], ["report", "out"]):
        # A fork has imported the package of this checkout.
        ended = attrib_batch(*verb, cwd=folder, env=environment, fresh=True)
        assert ended.code == 0, ended.said
    assert read_table(folder / "out", "baselines").height == 8
    assert (folder / "out/report.html").stat().st_size > 1_000_000  # plotly is in it
