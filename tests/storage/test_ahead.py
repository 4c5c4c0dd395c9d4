"""Several reads at once: in order, not too many, and what goes wrong is raised in its turn."""

from __future__ import annotations

import threading
import time

import pytest

from attrib_batch.storage.ahead import read_ahead


def test_results_come_in_order_though_the_first_takes_longest() -> None:
    def read(item: int) -> int:
        time.sleep(0.02 * (item == 0))
        return item * item

    assert list(read_ahead(read, range(9), 4)) == [item * item for item in range(9)]
    assert list(read_ahead(read, [], 4)) == []


def test_no_more_are_held_than_asked_for() -> None:
    begun: list[int] = []
    results = read_ahead(lambda item: begun.append(item) or item, range(20), 3)
    for taken, _ in enumerate(results, start=1):
        assert len(begun) <= taken + 2
    assert sorted(begun) == list(range(20))


def test_reads_run_at_the_same_time() -> None:
    all_there = threading.Barrier(4)
    assert list(read_ahead(lambda _item: all_there.wait(10) >= 0, range(4), 4)) == [True] * 4


def test_an_error_is_raised_in_its_turn() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise FileNotFoundError(item)
        return item

    results = read_ahead(read, range(9), 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(FileNotFoundError):
        next(results)
