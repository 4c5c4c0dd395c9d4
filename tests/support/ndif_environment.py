"""The virtual environments of the NDIF server and of object stores.

Each is built once per user, by whichever test run needs it first, and kept in the user's cache folder. Its name
holds a hash of everything that decides what is in it.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
from filelock import FileLock

SUPPORT = Path(__file__).parent
CONSTRAINTS = SUPPORT.parents[1] / "constraints.txt"
NDIF = "ndif==0.1.2"
INSTALL_SECONDS = 1200
STAMP = "installed"


def ndif_environment() -> Path:
    """The folder of the environment that the server runs in."""
    torch = next(line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    return _environment(
        "ndif",
        # First and alone, as in the Makefile: an open range may bring a CUDA build of several gigabytes.
        [torch],
        ["-r", SUPPORT / "ndif_requirements.txt"],
        # It declares Python 3.12 and needs nothing of it; with its dependencies the flag would apply to them too.
        ["--no-deps", "--ignore-requires-python", NDIF],
    )


def moto_environment() -> Path:
    """The folder of the environment that the object store runs in."""
    return _environment("moto", ["-r", SUPPORT / "moto_requirements.txt"])


def google_store_environment() -> Path:
    """The folder of the environment that the emulator of Google Cloud Storage runs in."""
    return _environment("google-store", ["-r", SUPPORT / "google_store_requirements.txt"])


def _environment(name: str, *installs: list[str | Path]) -> Path:
    folder = platformdirs.user_cache_path("attrib-batch") / "test-environments" / f"{name}-{_hash(installs)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / STAMP).exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                _build(folder, installs)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder


def _hash(installs: tuple[list[str | Path], ...]) -> str:
    python = [platform.python_implementation(), platform.python_version(), platform.machine()]
    arguments = [argument for install in installs for argument in install]
    files = [path.read_text(encoding="utf-8") for path in (CONSTRAINTS, *arguments) if isinstance(path, Path)]
    parts = [*python, *(argument for argument in arguments if isinstance(argument, str)), *files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _build(folder: Path, installs: tuple[list[str | Path], ...]) -> None:
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    _run(log, sys.executable, "-m", "venv", folder)
    for arguments in installs:
        _run(log, folder / "bin/python", "-m", "pip", "install", "--no-input", "-c", CONSTRAINTS, *arguments)
    # Last of all: a folder without it is unfinished.
    (folder / STAMP).touch()


def _run(log: Path, *command: str | Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=INSTALL_SECONDS)
    if done.returncode:
        end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"building the test environment {log.stem} failed; the end of its log:\n{end}")


if __name__ == "__main__":  # ahead of the tests, for example while others run
    for build in (ndif_environment, moto_environment, google_store_environment):
        build()
