"""Which tests are fast, and which need a system package: by the fixtures that they use, and the folders they lie in.

``slow`` is whatever starts a process, a Ray or a server, uses a network or the real model, or takes long. ``system`` is
what needs a package of the operating system: a browser, or the Redis of a real NDIF server. Everything else is fast,
which is checked: a fast test that starts a process fails.
"""

from __future__ import annotations

import subprocess
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

SYSTEM_FIXTURES = {"browser", "ndif_server"}
SLOW_FIXTURES = {
    "google_store",
    "object_store",
    "object_store_server",
    "ranks",
    "runs",
    "shared_ray",
    "smollm2",
    "smollm2_tokenizer",
    "undisturbed",
    "unpacked_wheel",
}
SLOW_FOLDERS = ("tests/cluster/", "tests/oracle/")


def mark_by_needs(item: pytest.Item) -> None:
    """Mark a test as ``slow`` or ``system`` where it is."""
    fixtures: Iterable[str] = getattr(item, "fixturenames", ())
    if SYSTEM_FIXTURES & set(fixtures) or item.get_closest_marker("browser"):
        item.add_marker(pytest.mark.system)
        item.add_marker(pytest.mark.slow)
    elif SLOW_FIXTURES & set(fixtures) or item.nodeid.startswith(SLOW_FOLDERS):
        item.add_marker(pytest.mark.slow)


def starts_no_process(item: pytest.Item, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a fast test fail that starts a process."""
    if item.get_closest_marker("slow"):
        return

    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"{item.nodeid} starts a process: mark it as slow ({arguments[1:2]})")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(BaseProcess, "start", refuse)
