"""Imports during which nobody looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from attrib_batch.execution.imports import collector_paused


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.unfreeze()
    gc.enable()
    yield
    gc.freeze()  # as it is once the tests are collected
    (gc.enable if enabled else gc.disable)()


def broken_import() -> None:
    with collector_paused():
        assert not gc.isenabled()
        import attrib_batch.nothing  # type: ignore[import-not-found]  # noqa: F401


def test_the_collector_pauses_and_goes_on() -> None:
    with pytest.raises(ImportError):
        broken_import()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_what_is_kept_is_not_looked_through_again() -> None:
    with collector_paused(keep=True):
        pass
    assert gc.get_freeze_count() > 0
