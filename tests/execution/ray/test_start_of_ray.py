"""What a machine may be like when a run starts Ray: folders for temporary files, and `uv run`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.utils import validate_socket_filepath

from attrib_batch.errors import RequestError, RunInterruptedError
from attrib_batch.execution.ray import start
from attrib_batch.execution.ray.start import check_ray_folder
from tests.support.jobs import COMMAND_SECONDS, TinyJob, attrib_batch, command, environment

OVERHEAD = len(f"/ray/session_2026-11-27_10-08-36_508048_{os.getpid()}/sockets/plasma_store")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder whose path is as long as fits."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    return "/tmp/".ljust(107 - OVERHEAD, "x")  # noqa: S108 - it is not made


@pytest.mark.skipif(sys.platform != "linux", reason="Ray heeds TMPDIR on Linux alone, and sockets differ")
def test_the_limit_is_rays(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    below = f"/ray/session_2026-11-27_10-08-36_508048_{os.getpid()}/sockets/plasma_store"
    validate_socket_filepath(folder + below)
    monkeypatch.setenv("TMPDIR", folder)
    check_ray_folder()
    with pytest.raises(OSError, match="AF_UNIX path length"):
        validate_socket_filepath(f"{folder}x{below}")
    monkeypatch.setenv("TMPDIR", f"{folder}x")
    most = len(folder)
    with pytest.raises(
        RequestError, match=rf"^TMPDIR is too long .* has {most + 1} bytes, and {most} is .* RAY_TMPDIR"
    ):
        check_ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # noqa: S108 - Ray takes this one first
    check_ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", f"{folder}ü")  # one letter, two bytes
    with pytest.raises(RequestError, match=rf"^RAY_TMPDIR is too long .* has {most + 2} bytes"):
        check_ray_folder()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "file/below")
    with pytest.raises(RequestError, match=r"in file/below \(RAY_TMPDIR\): Not a directory\. Set RAY_TMPDIR to"):
        check_ray_folder()


@pytest.mark.slow
def test_the_command_refuses_a_long_one_before_ray_starts(tmp_path: Path) -> None:
    job, long = TinyJob.make(tmp_path / "job", n_pairs=4), tmp_path / ("x" * 80)
    long.mkdir()
    env = {name: value for name, value in environment().items() if name != "RAY_TMPDIR"} | {"TMPDIR": str(long)}
    ended = attrib_batch("run", job.write(), "--out", tmp_path / "out", env=env)
    assert ended.code == 2, ended.said
    assert "TMPDIR is too long for Ray's sockets" in ended.messages
    assert "Traceback" not in ended.said
    assert not (long / "ray").exists()
    assert not (tmp_path / "out/lease.json").exists()


@pytest.mark.slow
def test_workers_run_in_the_drivers_environment_under_uv_run(tmp_path: Path) -> None:
    """Ray looks for `uv run` in the command lines of a driver's parents."""
    job = TinyJob.make(tmp_path / "job", n_pairs=4)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\n')
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    done = subprocess.run(
        ["uv", "run", *command("run", job.write(), "--out", tmp_path / "out")],
        executable="/bin/sh", cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=COMMAND_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_ray_that_does_not_start_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - what Ray raises on a busy machine

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # noqa: S108 - short
    with pytest.raises(RunInterruptedError, match=r"Ray could not start .*: The current node timed out"):
        start.start_ray()
