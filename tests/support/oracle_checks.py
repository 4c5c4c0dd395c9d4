"""What the tests of the oracle share: a pair, its metric, every architecture, and when numbers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.tiny_models import ARCHITECTURES

LENGTH, FIRST_DIFFERENCE = 7, 3
PAIR = random_pairs(1, LENGTH, FIRST_DIFFERENCE)[0]
METRIC = oracle.logit_diff(PAIR.answers, PAIR.wrong_answers)
DIRECTIONS = ("denoise", "noise")

each_architecture = pytest.mark.parametrize("model", list(ARCHITECTURES), indirect=True)
"""Run a test with the fixture ``model`` once for each."""


def assert_close(got: Any, expected: Any, share: float = 1e-5) -> None:
    """Equal up to a share of the largest expected number."""
    got, expected = (torch.as_tensor(x).detach() for x in (got, expected))
    assert (got - expected).abs().max() <= share * expected.abs().max()
