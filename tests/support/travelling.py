"""Requests to NDIF servers while shapes are checked: functions travel as they are written, without the checks.

The import hook wraps every function, and a wrapper has the globals of jaxtyping, not those of the module it wraps.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import FunctionType


@pytest.fixture
def without_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are pickled as they are in a process without the import hook."""
    from nnsight.intervention.serialization import CustomCloudPickler

    wrapped = CustomCloudPickler._dynamic_function_reduce

    def reduce(self: CustomCloudPickler, function: FunctionType) -> tuple[Any, ...]:
        found: tuple[Any, ...] = wrapped(self, inspect.unwrap(function))
        return found

    monkeypatch.setattr(CustomCloudPickler, "_dynamic_function_reduce", reduce)
