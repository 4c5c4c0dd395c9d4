"""What must be light stays light when it runs; which module may import which is import-linter's (make lint)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attrib_batch.spec import Cell
from tests.support.jobs import environment
from tests.support.synthetic_run import IoiLike, write_run

HEAVY = {"torch", "ray", "nnsight", "transformers"}


def loaded_after(code: str) -> set[str]:
    """The heavy packages in a fresh interpreter after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*(set(sys.modules) & {HEAVY!r}))"],
        env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.slow
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


@pytest.mark.slow
def test_report_and_analysis_work_where_torch_and_ray_are_not_installed(tmp_path: Path) -> None:
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
    pairs = IoiLike(layers=2, heads=2).pairs(4)
    out = write_run(tmp_path, {Cell("gpt2", "ioi", "atp"): pairs, Cell("gpt2", "ioi", "other"): pairs})
    for arguments in (["summarize"], ["report"], ["export", "--format", "csv", "--format", "mib"]):
        verb = f"import sys; sys.argv = ['attrib-batch', *{arguments!r}, {str(out)!r}]\n"
        subprocess.run(
            [sys.executable, "-c", blocked + verb + "from attrib_batch.cli import main; main()"],
            env=environment(), check=True, timeout=60,
        )  # fmt: skip
    assert (out / "report.html").exists()
    assert (out / "export/top.csv").exists()
    assert len(list((out / "export/mib").rglob("importances.json"))) == 2
