"""TransformerLens, where it is installed: its hooks, in the recipe of its attribution patching demo."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from benchmarks.workloads import Workload


def load(model_id: str) -> Any | None:
    """The model in TransformerLens; None where it is not installed."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return None
    from benchmarks import models

    loaded = models.load(model_id, frozen=False)
    return TransformerBridge.boot_transformers(
        loaded.module.config.name_or_path, hf_model=loaded.module, tokenizer=loaded.tokenizer, device="cpu"
    )


def scores(model: Any, work: Workload) -> np.ndarray:
    """Hooks for both runs' activations and for the gradients, all logits, parameters with gradients."""
    layers = range(model.cfg.n_layers)
    clean: dict[int, Tensor] = {}
    corrupted: dict[int, Tensor] = {}
    gradients: dict[int, Tensor] = {}

    def keep_in(found: dict[int, Tensor]) -> list[tuple[str, Any]]:
        def hook(tensor: Tensor, layer: int, **_: Any) -> None:
            found[layer] = tensor.detach()

        return [(f"blocks.{layer}.attn.hook_z", partial(hook, layer=layer)) for layer in layers]

    with torch.no_grad(), model.hooks(fwd_hooks=keep_in(clean)):
        model(work.clean)
    model.zero_grad()
    with model.hooks(fwd_hooks=keep_in(corrupted), bwd_hooks=keep_in(gradients)):
        right, wrong = model(work.corrupted)[:, -1].gather(-1, work.answers).unbind(-1)
        (right - wrong).sum().backward()
    products = [gradients[layer] * (clean[layer] - corrupted[layer]) for layer in layers]
    return torch.stack([_heads(product, model).sum(-1).transpose(1, 2) for product in products], 1).cpu().numpy()


def _heads(values: Tensor, model: Any) -> Tensor:
    """(pair, position, head, feature), which depends on the model's adapter."""
    return values if values.dim() == 4 else values.unflatten(-1, (model.cfg.n_heads, -1))
