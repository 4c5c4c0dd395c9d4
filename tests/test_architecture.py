"""The house rules: imports go downwards only, and what must be light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, environment

PACKAGE = ROOT / "attrib_batch"

# From the top down; a layer may import those below it.
LAYERS = ["cli", "report", "analysis", "run", "workers", "attribution", "models", "pairs"]
BOTTOM = {
    "metric_names",
    "spec",
    "schema",
    "errors",
    "store",
    "files",
    "objects",
    "partition_names",
    "conditional",
    "_version",
}
HEAVY = {"torch", "ray", "nnsight", "transformers"}
FORBIDDEN = {
    "cli": {"torch", "ray", "nnsight"},
    "report": HEAVY,
    "analysis": HEAVY,
    "run": {"torch", "nnsight", "transformers"},
    "attribution": {"ray"},
    "models": {"ray"},
    "pairs": HEAVY,
    "spec": HEAVY,
    "schema": HEAVY,
    "errors": HEAVY,
    "store": HEAVY,
    "files": HEAVY,
    "objects": HEAVY,
    "conditional": HEAVY,
}
RESULTS_LAYERS_IMPORT_NO = {"run", "workers", "attribution", "models", "pairs"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inner_layers(path: Path) -> set[str]:
    """The layers of this package a file imports from."""
    parts = [name.split(".") for name in imports(path) if name.startswith("attrib_batch.")]
    return {part[1] for part in parts if (PACKAGE / part[1]).is_dir() or (PACKAGE / f"{part[1]}.py").is_file()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    layer = layer_of(path)
    if layer in {"__init__", "__main__"}:
        return
    below = set(BOTTOM) if layer in BOTTOM else BOTTOM | set(LAYERS[LAYERS.index(layer) :])
    assert inner_layers(path) <= below
    if layer in {"report", "analysis"}:
        assert not inner_layers(path) & RESULTS_LAYERS_IMPORT_NO


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_keep_out_what_is_not_theirs(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    forbidden = FORBIDDEN.get(layer_of(path), set())
    if path == PACKAGE / "run" / "doctor.py":
        forbidden = forbidden - {"torch"}  # it asks torch for GPUs, where torch is installed
    assert not used & forbidden


def test_few_modules_talk_to_ray() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in modules() if {"ray"} & {n.split(".")[0] for n in imports(path)}}
    assert users == {
        "run/capacity.py",
        "run/driver.py",
        "run/gangs.py",
        "run/metrics.py",
        "run/pool.py",
        "run/submit.py",
        "workers/shard.py",
    }


def loaded_after(code: str) -> set[str]:
    """The heavy packages in a fresh interpreter after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*(set(sys.modules) & {HEAVY!r}))"],
        env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.split("\n")[-2].split())


def test_import_and_help_load_nothing_heavy() -> None:
    assert loaded_after("import attrib_batch") == set()
    assert (
        loaded_after(
            "import sys; sys.argv = ['attrib-batch', '--help']\n"
            "from attrib_batch.cli import main\n"
            "try: main()\nexcept SystemExit as stop: assert not stop.code"
        )
        == set()
    )


def test_report_and_analysis_work_where_torch_and_ray_are_not_installed() -> None:
    blocked = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    subprocess.run(
        [sys.executable, "-c", blocked + "import attrib_batch.analysis, attrib_batch.report, attrib_batch.cli.results"],
        env=environment(), check=True, timeout=60,
    )  # fmt: skip
