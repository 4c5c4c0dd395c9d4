"""Load a model as the benchmarks use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attrib_batch.models.load import load_model
from attrib_batch.spec import ModelSpec

if TYPE_CHECKING:
    from attrib_batch.models.load import LoadedModel

MODEL_ID = "smollm2-135m"
N_THREADS = 2


def load(model_id: str, *, frozen: bool = True) -> LoadedModel:
    """A float32 model on the CPU, two threads; not ``frozen``, its parameters require gradients, as loaded."""
    torch.set_num_threads(N_THREADS)
    model = load_model(ModelSpec(id=model_id, device="cpu", prepend_bos=False))
    model.module.requires_grad_(not frozen)
    return model
