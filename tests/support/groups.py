"""Which tests run in one process together when there are several (pytest-xdist), and which of them begin first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest

LONG_FIRST = (
    "tests/ndif/",
    "tests/execution/test_lost_workers.py",
    "tests/execution/test_object_runs.py",
    "tests/execution/test_faults.py",
    "tests/execution/test_shards.py",
    "tests/cluster/",
    "tests/test_end_to_end.py",
    "tests/execution/",
    "tests/attribution/",
    "tests/models/",
    "tests/oracle/",
)
"""Files, and folders with all that is in them, that take long, the longest first: what begins last is to be short."""

TOGETHER = ("tests/ndif/",)
"""Folders whose files are one group: the NDIF server takes a minute to start, and is started once.

Nor may two start at a time: Ray gives the servers of its clients ports from 23000 on, and both would take the same.
"""


class Groups(LoadScopeScheduling):
    """One group after the other to each process, in the order of the tests.

    A file is not divided: what its tests share is made once. (The groups are not marked by ``xdist_group``, which
    xdist 3.8 overlooks under pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """The group of a test: its file, or the folder whose files belong together."""
    return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


def sort_long_first(items: list[pytest.Item]) -> None:
    """Put the tests of long files first; the order is otherwise as it was."""
    items.sort(key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    return next((rank for rank, path in enumerate(LONG_FIRST) if nodeid.startswith(path)), len(LONG_FIRST))
