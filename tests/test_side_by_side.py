"""Tests that run side by side: which process runs which, what it does only once, and ports that are one process's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.jobs import ROOT
from tests.support.ports import PORTS, free_ports

if TYPE_CHECKING:
    from pathlib import Path

CONFTEST = """
from pathlib import Path
import pytest
from tests.conftest import pytest_collection_modifyitems, pytest_xdist_make_scheduler

@pytest.fixture(scope="session")
def server():
    with Path("started").open("a") as file:
        file.write("x")

@pytest.fixture(scope="module")
def shared(request):
    with Path(request.module.__name__).open("a") as file:
        file.write("x")
"""
PLAIN = """
import time, pytest

@pytest.mark.parametrize("n", range(6))
def test_plain(n, shared):
    time.sleep(0.1)
"""
ON_THE_SERVER = """
def test_without(shared):
    pass

def test_on_the_server(server, shared):
    pass
"""
FILES = {"cluster/test_a": PLAIN, "cluster/test_b": PLAIN, "ndif/test_c": ON_THE_SERVER, "ndif/test_d": ON_THE_SERVER}


def run(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--rootdir={folder}", *options, "tests"],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        | {"PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "tests/conftest.py").write_text(CONFTEST)
    for name, text in FILES.items():
        (tmp_path / f"tests/{name}.py").write_text(text)
    return tmp_path


def test_a_file_runs_in_one_process_and_all_that_shares_the_server_does(folder: Path) -> None:
    said = run(folder, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    ran = re.findall(r"\[(gw\d)\].* PASSED tests/\w+/(test_.)\.py", said)
    assert len(ran) == 16
    by_file = {file: {worker for worker, other in ran if other == file} for _, file in ran}
    assert set(map(len, by_file.values())) == {1}
    assert by_file["test_c"] == by_file["test_d"]
    assert {worker for worker, _ in ran} == {"gw0", "gw1"}
    [first, *_] = [file for worker, file in ran if worker in by_file["test_c"]]
    assert first == "test_c", "what takes longest begins first"
    for name in ("started", "test_a", "test_b", "test_c", "test_d"):
        assert (folder / name).read_text() == "x"


def test_one_process_needs_nothing_of_this(folder: Path) -> None:
    ran = re.findall(r"(test_.)\.py::\S+ PASSED", run(folder, "-p", "no:xdist"))
    assert len(ran) == 16


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    given: list[int] = []
    for worker in range(3):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        ports = [port for _ in range(20) for port in free_ports(10)]
        assert {port % 3 for port in ports} == {(PORTS[0] + worker) % 3}
        given += ports
    assert len(set(given)) == len(given)
