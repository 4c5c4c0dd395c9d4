"""Runs that go wrong where a test says: processes that die at a step, pairs that harm the worker that meets them.

The package under test knows nothing of it: faults strike through a ``sitecustomize`` on the path of its processes, and
poison through a metric that an installed package offers, as any package may.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.jobs import FAULTY, ROOT, environment

METRIC = "faulty"
FAULTS_FILE = "faults.json"


def install_metric(folder: Path) -> None:
    """Make a folder that offers the metric as an installed package does."""
    info = folder / "faulty_metric-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-metric\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[attrib_batch.metrics]\n{METRIC} = faulty_metric:faulty\n")


def faulty_environment(
    packages: Path,
    *,
    faults: list[dict[str, str]] | None = None,
    poison: dict[int, str] | None = None,
    slow: float = 0.0,
) -> dict[str, str]:
    """The environment of a command whose run goes wrong.

    Args:
        packages: a folder in which the metric is installed; faults leave their marks in it.
        faults: where processes die, see ``faulty/sitecustomize.py``; each list strikes anew.
        poison: what happens to the worker that meets a pair with this answer.
        slow: seconds that every computation of the metric takes.
    """
    write_faults(packages, faults=faults, poison=poison, slow=slow)
    return {
        **environment(),
        "PYTHONPATH": f"{ROOT}:{FAULTY}:{packages}",
        "TEST_FAULTS_FILE": str(packages / FAULTS_FILE),
    }


def write_faults(
    packages: Path,
    *,
    faults: list[dict[str, str]] | None = None,
    poison: dict[int, str] | None = None,
    slow: float = 0.0,
) -> None:
    """Say what goes wrong from now on, with marks of its own; arguments as for `faulty_environment`."""
    marks = packages / f"marks-{len(list(packages.glob('marks-*')))}"
    marks.mkdir(parents=True)
    data = {"folder": str(marks), "faults": faults or [], "poison": poison or {}, "slow": slow}
    file = packages / FAULTS_FILE
    file.with_suffix(".new").write_text(json.dumps(data))
    file.with_suffix(".new").replace(file)


def marks(environment: dict[str, str]) -> set[int]:
    """Which faults have struck."""
    return {int(path.name.removeprefix("struck-")) for path in _folder(environment).glob("struck-*")}


def open_gate(environment: dict[str, str]) -> None:
    """Let those go on who have met a pair that holds them."""
    (_folder(environment) / "gate").touch()


def _folder(environment: dict[str, str]) -> Path:
    return Path(json.loads(Path(environment["TEST_FAULTS_FILE"]).read_text())["folder"])
