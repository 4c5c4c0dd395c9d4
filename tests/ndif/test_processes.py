"""Ending the processes of a server, whatever has become of their parents."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.processes import Service, ServiceError, end, is_gone

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

START_A_CHILD = 'sleep 600 & echo "child $!"'

DIES_WITHOUT_ENDING_ITS_SERVICE = """
import os, pathlib, sys
from tests.ndif.test_processes import START_A_CHILD, child_of, start
from tests.support.processes import Guard

service = start(pathlib.Path(sys.argv[1]), f"{START_A_CHILD}; wait")
Guard().watch(service)
child_of(service)
os._exit(1)
"""


def start(folder: Path, script: str) -> Service:
    return Service.start("service", ["sh", "-c", script], environment={"PATH": os.environ["PATH"]}, folder=folder)


def child_of(service: Service) -> psutil.Process:
    service.wait_until(lambda: b"child" in service.log.read_bytes(), 10)
    return child_in(service.log)


def child_in(log: Path) -> psutil.Process:
    return psutil.Process(int(log.read_text().split()[-1]))


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    service = start(tmp_path, f"{START_A_CHILD}; wait")
    child = child_of(service)
    end([service])
    assert service.process.returncode < 0
    assert is_gone(child)


def test_an_orphan_is_found_and_ended(tmp_path: Path) -> None:
    service = start(tmp_path, START_A_CHILD)
    service.wait_for_success(10)
    child = child_in(service.log)
    assert not is_gone(child)
    end([service])
    assert is_gone(child)


def test_a_service_that_ends_early_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    service = start(tmp_path, "echo no such port; exit 3")
    with pytest.raises(ServiceError, match=r"(?s)service ended with code 3 before .*no such port"):
        service.wait_until(lambda: False, 10)


def test_a_service_that_is_never_ready_is_named(tmp_path: Path) -> None:
    service = start(tmp_path, "sleep 600")
    with pytest.raises(ServiceError, match=r"service was not ready after 0\.2 s"):
        service.wait_until(lambda: False, 0.2)
    end([service])


def test_the_guard_ends_what_a_dead_process_has_left(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES_WITHOUT_ENDING_ITS_SERVICE, tmp_path], cwd=ROOT, timeout=60)
    child = child_in(tmp_path / "service.log")
    deadline = time.monotonic() + 10
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_gone(child)
