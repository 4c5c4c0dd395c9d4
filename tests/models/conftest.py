"""Two processes that share a model, and tiny models to share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.ranks import Ranks
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    group = Ranks(2)
    yield group
    group.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, saved once."""
    return cache(lambda name: save_tiny(name, tmp_path_factory.mktemp(name)))
