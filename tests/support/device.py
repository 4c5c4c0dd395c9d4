"""The device that the tests of scores put models on: ``ATTRIB_BATCH_TEST_DEVICE=cuda pytest tests/attribution``.

The oracle's own models stay on the CPU: what a GPU computes is compared with what plain hooks compute there.
"""

from __future__ import annotations

import os

import torch

VARIABLE = "ATTRIB_BATCH_TEST_DEVICE"
TEST_DEVICE = torch.device(os.environ.get(VARIABLE, "cpu"))


def of(model: torch.nn.Module) -> torch.device:
    """The device that a model lies on."""
    return next(model.parameters()).device


# What `near` allows is the rounding of float32, and TF32 has far coarser.
torch.set_float32_matmul_precision("highest")
