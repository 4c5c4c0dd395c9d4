"""What the tests of the oracle share: a pair, its metric, and the architectures."""

from __future__ import annotations

import pytest

from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.tiny_models import ARCHITECTURES, EVERY_ARCHITECTURE

LENGTH, FIRST_DIFFERENCE = 7, 3
PAIR = random_pairs(1, LENGTH, FIRST_DIFFERENCE)[0]
METRIC = oracle.logit_diff(PAIR.answers, PAIR.wrong_answers)
DIRECTIONS = ("denoise", "noise")

each_architecture = pytest.mark.parametrize("model", list(ARCHITECTURES), indirect=True)
"""Run a test with the fixture ``model`` once for each."""

every_architecture = pytest.mark.parametrize("model", list(EVERY_ARCHITECTURE), indirect=True)
"""The same for those too that most tests leave out."""
