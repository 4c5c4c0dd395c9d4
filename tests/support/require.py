"""What a test needs and a machine may lack."""

from __future__ import annotations

import os

import pytest


def require(available: bool, reason: str) -> None:
    """Skip the test where something is not available; with ATTRIB_BATCH_REQUIRE_ALL=1 fail instead."""
    if available:
        return
    if os.environ.get("ATTRIB_BATCH_REQUIRE_ALL") == "1":
        pytest.fail(f"required by ATTRIB_BATCH_REQUIRE_ALL=1: {reason}")
    pytest.skip(reason)
