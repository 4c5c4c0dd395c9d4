"""The tiny model that a test of the oracle names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.tiny_models import EVERY_ARCHITECTURE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return EVERY_ARCHITECTURE[request.param]()
