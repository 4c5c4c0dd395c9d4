"""Fixtures of tests with requests to NDIF servers."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_written(without_shape_checks: None) -> None:
    """Requests hold functions as they are written."""
