"""Attention that can be differentiated twice: what `cascade` computes, of operations that torch differentiates.

`cascade` brings a backward pass of its own, which torch cannot differentiate again. Here the scores of every level, of
the size (queries x keys), are kept for the backward pass, so only what needs second derivatives pays for them. Levels
are joined before they are divided, so that a query that sees no key of a level has a 0 there and no 0 / 0:

    softmax over all keys . v  =  sum over levels (exp(scores - m) . v_level)  /  sum over levels (exp(scores - m) . 1)

with m the largest score of the query, held constant: it cancels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.passes.blocks import Block
from attrib_batch.attribution.passes.cascade import Scale, Seen, by_group, by_head, by_kv_head

_LEAST = -1e30
"""In place of minus infinity as the largest score of a query that sees no key."""


def attend_for_second_derivatives(
    query: Float[Tensor, "head query feature"],
    key: Float[Tensor, "kv_head query feature"],
    value: Float[Tensor, "kv_head query value_feature"],
    seen: Seen,
) -> Float[Tensor, "head query value_feature"]:
    """Attend to every stretch, as `cascade.attend` does; the gradients have gradients."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query_ = query.to(wide)
    scores = [
        (block, values, _scores(block, query_, keys, seen.scale))
        for stretch in seen.stretches
        for keys, values in ([of.to(wide) for of in stretch.of(key, value)],)
        for block in stretch.blocks
    ]
    largest = query_.new_full(query.shape[:2], _LEAST)
    if seen.sinks is not None:
        largest = torch.maximum(largest, seen.sinks.detach().to(wide).unsqueeze(-1))
    with torch.no_grad():
        for block, _, found in scores:
            here = torch.full_like(largest, _LEAST)
            block.queries.put(here, by_head(found.amax(-1, keepdim=True), block, query).squeeze(-1))
            largest = torch.maximum(largest, here)
    out = query_.new_zeros(*query.shape[:2], value.shape[-1])
    total = query_.new_zeros(query.shape[:2])
    if seen.sinks is not None:
        total = total + (seen.sinks.to(wide).unsqueeze(-1) - largest).exp()
    for block, values, found in scores:
        of_block = by_kv_head(block.queries.gather(largest.unsqueeze(-1)), values.shape[0])
        weights = (found - of_block).exp()
        block.queries.add(out, by_head(weights @ by_group(block.keys.gather(values)), block, query))
        block.queries.add(total, by_head(weights.sum(-1, keepdim=True), block, query).squeeze(-1))
    return (out / total.unsqueeze(-1)).to(query.dtype)


def _scores(block: Block, query: Tensor, keys: Tensor, scale: Scale) -> Tensor:
    queries = by_kv_head(block.queries.gather(query), keys.shape[0])
    scores = queries @ by_group(block.keys.gather(keys)).transpose(-1, -2) * scale.scaling
    if scale.softcap is not None:
        scores = (scores / scale.softcap).tanh() * scale.softcap
    if block.visible is None:
        return scores
    n_groups, n_queries, n_keys = block.visible.shape
    by_group_ = scores.view(-1, n_groups, scores.shape[1] // n_queries, n_queries, n_keys)
    return by_group_.masked_fill(~block.visible[:, None], -torch.inf).view(scores.shape)
