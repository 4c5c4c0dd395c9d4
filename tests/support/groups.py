"""Which tests go to one worker together when several run side by side (pytest-xdist), and which groups begin first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

NDIF = "ndif"
"""The group of all files with tests on the NDIF server: it takes a minute to start, and is started once."""

LONG_FIRST = (
    NDIF,
    "tests/run/test_faults.py",
    "tests/cluster/",
    "tests/run/",
    "tests/attribution/",
    "tests/models/",
    "tests/analysis/",
)
"""Groups that take long, or the beginnings of their names, the longest first: what begins last should be short."""


def worker_index() -> int:
    """Which of the workers this process is, from 0 on; 0 where there is only one."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def n_workers() -> int:
    """How many workers run side by side."""
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def assign_groups(items: list[pytest.Item]) -> None:
    """Give every test its group, and put those of long groups first.

    A file is not divided: what its tests share is made once.
    """
    with_server = {_file(item) for item in items if "ndif_server" in getattr(item, "fixturenames", ())}
    groups = {item: NDIF if (file := _file(item)) in with_server else file for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _rank(groups[item], LONG_FIRST))


def _file(item: pytest.Item) -> str:
    return item.nodeid.split("::")[0]


def _rank(group: str, long_first: Sequence[str]) -> int:
    return next((rank for rank, beginning in enumerate(long_first) if group.startswith(beginning)), len(long_first))
