"""Models in float64 throughout: most families compute norms and softmax in float32, whatever the model is in.

A finite difference divides rounding by its step, and has no digits left where some of it is float32's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pytest
    from torch import nn


class _Torch:
    """The module ``torch``, in which float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def compute_in_double(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the code of a float64 model go to float64 where it goes to float32."""
    for name in {type(module).__module__ for module in model.modules() if "transformers." in type(module).__module__}:
        if getattr(sys.modules[name], "torch", None) is torch:
            monkeypatch.setattr(sys.modules[name], "torch", _Torch())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
