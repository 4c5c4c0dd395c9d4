"""Building an environment once, and never using a half of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import ndif_environment
from tests.support.ndif_environment import CONSTRAINTS, NDIF, STAMP

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would build an environment, none of which is run."""
    seen: list[list[str]] = []

    def run(log: Path, *command: str | Path) -> None:
        seen.append([str(part) for part in command])
        log.with_suffix("").mkdir(exist_ok=True)

    monkeypatch.setattr(ndif_environment, "_run", run)
    monkeypatch.setattr(ndif_environment.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    return seen


def test_torch_is_installed_first_and_the_server_last(commands: list[list[str]]) -> None:
    ndif_environment.ndif_environment()
    venv, torch, requirements, ndif = commands
    assert "venv" in venv
    assert torch[-1] in CONSTRAINTS.read_text().splitlines()
    assert torch[-1].startswith("torch==")
    assert requirements[-2] == "-r"
    assert ndif[-3:] == ["--no-deps", "--ignore-requires-python", NDIF]


def test_an_environment_is_built_once(commands: list[list[str]]) -> None:
    folder = ndif_environment.moto_environment()
    commands.clear()
    assert ndif_environment.moto_environment() == folder
    assert commands == []


def test_an_unfinished_environment_is_built_anew(commands: list[list[str]]) -> None:
    folder = ndif_environment.moto_environment()
    (folder / STAMP).unlink()
    (folder / "half").touch()
    ndif_environment.moto_environment()
    assert (folder / STAMP).exists()
    assert not (folder / "half").exists()


def test_an_interrupted_build_leaves_no_environment(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., None] = ndif_environment._run

    def interrupted(log: Path, *command: str | Path) -> None:
        run(log, *command)
        if "pip" in command:
            raise KeyboardInterrupt

    monkeypatch.setattr(ndif_environment, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ndif_environment.moto_environment()
    monkeypatch.setattr(ndif_environment, "_run", run)
    commands.clear()
    ndif_environment.moto_environment()
    assert "venv" in commands[0]
