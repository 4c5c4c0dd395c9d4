"""Check on a loaded model what its configuration may not tell: that no position sees a later one.

Scores rest on it twice: the positions before two prompts differ are computed once, from a key/value cache, and every
score there is 0.
"""

from __future__ import annotations

from typing import Any

import torch

from attrib_batch.errors import ModelError
from attrib_batch.models.families import dimensions_of
from attrib_batch.models.rotary import keeps_a_state, prefix_is_reusable

PROMPT_TOKENS, PREFIX_TOKENS = 8, 4
"""The made-up prompt, and its part that is computed alone."""
LEAST_TOLERANCE = 1e-3
"""The largest relative difference of two causal computations in single precision; rounding gives about 1e-6."""
ROUNDINGS = 20
"""The same in a narrower type, in units of its rounding error; it accumulates over the layers."""


def check_prefixes(module: Any, device: torch.device) -> None:
    """Compute a made-up prompt whole and from a cached prefix, and compare the logits behind the prefix.

    Where no prefix is ever cached, since layers keep a state and no keys, the logits at the prefix are compared with
    those of the prefix alone.

    Args:
        module: a transformers model in evaluation mode.
        device: where its token ids go.

    Raises:
        ModelError: they differ by more than rounding, so that scores from cached prefixes would be wrong.
    """
    import torch
    from transformers import DynamicCache

    config = module.config
    dimensions = dimensions_of(config)
    n_tokens = min(PROMPT_TOKENS, dimensions.max_tokens)
    cached = not keeps_a_state(config)
    if n_tokens <= PREFIX_TOKENS or (cached and not prefix_is_reusable(config, PREFIX_TOKENS, n_tokens)):
        return
    # Ids spread over the vocabulary, so that the tokens differ.
    ids = (torch.arange(1, n_tokens + 1, device=device) * (dimensions.d_vocab // (n_tokens + 1))).unsqueeze(0)
    prefix, rest = ids[:, :PREFIX_TOKENS], ids[:, PREFIX_TOKENS:]
    with torch.no_grad():
        whole = module(ids, use_cache=False).logits
        if cached:
            cache = DynamicCache(config=config)
            module(prefix, past_key_values=cache, use_cache=True)
            whole, parts = whole[:, PREFIX_TOKENS:], module(rest, past_key_values=cache, use_cache=True).logits
        else:
            whole, parts = whole[:, :PREFIX_TOKENS], module(prefix, use_cache=False).logits
    whole, parts = whole.double().cpu(), parts.double().cpu()
    error = ((parts - whole).norm() / (whole - whole.mean(-1, keepdim=True)).norm()).item()
    if error > max(LEAST_TOLERANCE, ROUNDINGS * torch.finfo(module.dtype).eps):
        other = "the same prompt from a cached prefix" if cached else "its prefix alone"
        raise ModelError(
            f"{config.model_type}: a prompt gives other logits than {other} (relative "
            f"difference {error:.2g}). Its attention looks ahead, or its positions depend on the prompt's length in a "
            "way that is not known here; scores from cached prefixes would be wrong"
        )
