"""Hand-written torch hooks, as one would write them for prompts of several lengths: sorted, padded on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair


def scores_of(model: LoadedModel, pairs: Sequence[EncodedPair], batch_pairs: int) -> dict[int, np.ndarray]:
    """The ``z`` scores of every pair at all of its positions: two forward passes and a backward pass a batch.

    Parameters are frozen, the clean run has no graph, what is unembedded is each prompt's last position, and results
    leave the device once a batch.
    """
    ordered = sorted(pairs, key=lambda pair: pair.n_tokens)
    found = {}
    for start in range(0, len(ordered), batch_pairs):
        batch = ordered[start : start + batch_pairs]
        for pair, values in zip(batch, _batch(model.module, batch, model.device), strict=True):
            found[pair.pair_id] = values[..., : pair.n_tokens]
    return found


def _batch(module: PreTrainedModel, pairs: Sequence[EncodedPair], device: torch.device) -> np.ndarray:
    ends = torch.tensor([pair.n_tokens - 1 for pair in pairs], device=device)
    answers = torch.tensor([[pair.answers[0], pair.wrong_answers[0]] for pair in pairs], device=device)
    clean: list[Tensor] = []
    corrupted: list[Tensor] = []
    with torch.no_grad():
        _forward(module, _padded([pair.clean for pair in pairs], device), ends, clean)
    logits = _forward(module, _padded([pair.corrupted for pair in pairs], device), ends, corrupted)
    right, wrong = logits.float().gather(-1, answers).unbind(-1)
    gradients = torch.autograd.grad((right - wrong).sum(), corrupted)
    n_heads = module.config.num_attention_heads
    with torch.no_grad():
        layers = [
            (g.float() * (a - b).float()).unflatten(-1, (n_heads, -1)).sum(-1).transpose(1, 2)
            for g, a, b in zip(gradients, clean, corrupted, strict=True)
        ]
        return torch.stack(layers, 1).cpu().numpy()


def _padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    longest = max(map(len, prompts))
    return torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)


def _forward(module: PreTrainedModel, ids: Tensor, ends: Tensor, seen: list[Tensor]) -> Tensor:
    """The logits of each row's own last position; inputs of all output projections are appended to ``seen``."""

    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and not args[0].requires_grad:
            args[0].requires_grad_(True)
        seen.append(args[0])

    handles = [projection.register_forward_pre_hook(read) for projection in _output_projections(module)]
    try:
        hidden = module.base_model(ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return module.lm_head(hidden[torch.arange(len(ends), device=ends.device), ends])


def _output_projections(module: PreTrainedModel) -> list[nn.Module]:
    if module.config.model_type == "gpt2":
        return [layer.attn.c_proj for layer in module.transformer.h]
    return [layer.self_attn.o_proj for layer in module.model.layers]
