"""Attention to stretches of keys that many rows share, and to a row's own keys, without a copy of either.

Every stretch of keys, a *level*, is attended to on its own, by all queries that see it in one product; the results are
joined by their log-sum-exps, which is exact. As in Hydragen (Juravsky et al. 2024, arXiv 2402.05099, section 3):

    softmax over all keys . v  =  sum over levels of  exp(lse_level - lse) * (softmax over the level's keys . v_level)

with lse the log-sum-exp over all keys. The backward pass computes the probabilities again from lse, level by level, as
FlashAttention does (Dao et al. 2022, arXiv 2205.14135, algorithm 4): with P = exp(score - lse) and D = sum(dO * O),

    dscore = P * (dO . v - D),    dq = scale * dscore . k,    dk = scale * dscore^T . q,    dv = P^T . dO

so nothing of the size (queries x keys) is kept for it. The keys of ancestors need no gradient: both prompts of a pair
have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.passes.blocks import Block

_LEAST = -1e30
"""In place of minus infinity as the largest score of a query that sees no key of a level."""


@dataclass(frozen=True)
class Scale:
    """How attention scores are made of products: ``scaling * q.k``, under a soft cap where the model has one."""

    scaling: float
    softcap: float | None = None


@dataclass(frozen=True)
class Stretch:
    """Keys and values that queries attend to, as (kv_head, key, feature), and the blocks that compute it.

    The last stretch of an attention is the queries' own: its keys and values are those of the pass, and None here.
    """

    keys: Float[Tensor, "kv_head key feature"] | None
    values: Float[Tensor, "kv_head key value_feature"] | None
    blocks: Sequence[Block]

    def of(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values, which are those of the pass where there are no others."""
        return (key, value) if self.keys is None or self.values is None else (self.keys, self.values)


@dataclass(frozen=True)
class Seen:
    """What queries attend to, and how."""

    stretches: Sequence[Stretch]
    """Those of ancestors, and the queries' own."""
    scale: Scale
    sinks: Float[Tensor, " head"] | None = None
    """For each head a score that takes its share of the probability and has no value."""


def attend(
    query: Float[Tensor, "head query feature"],
    key: Float[Tensor, "kv_head query feature"],
    value: Float[Tensor, "kv_head query value_feature"],
    seen: Seen,
) -> Float[Tensor, "head query value_feature"]:
    """Attend to every stretch; gradients reach ``query``, ``key`` and ``value``.

    Args:
        query: all queries of a pass; they are served by the key heads in order, as many by each.
        key: the pass's own keys.
        value: the pass's own values.
        seen: what they attend to.
    """
    found: Tensor = _Attend.apply(query, key, value, seen)  # type: ignore[no-untyped-call]  # torch's own
    return found


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Tensor:
        out, lse = _forward(query, key, value, seen)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.seen = seen
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx.saved_tensors, ctx.seen, grad), None)


def _forward(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Return what attention gives, and the log-sum-exp of every query's scores."""
    wide = torch.promote_types(query.dtype, torch.float32)
    outs, lses = [], []
    for stretch in seen.stretches:
        keys, values = stretch.of(key, value)
        out = query.new_zeros(*query.shape[:2], values.shape[-1], dtype=wide)
        lse = query.new_full(query.shape[:2], -torch.inf, dtype=wide)
        for block in stretch.blocks:
            scores = _scores(block, query, keys, seen.scale)
            largest = scores.amax(-1, keepdim=True).clamp_(min=_LEAST)
            weights = scores.sub_(largest).exp_()
            total = weights.sum(-1, keepdim=True)
            found = _product(weights, by_group(block.keys.gather(values))) / total
            block.queries.put(out, by_head(found, block, query))
            block.queries.put(lse, by_head((largest + total.log()), block, query).squeeze(-1))
        outs.append(out)
        lses.append(lse)
    if seen.sinks is not None:
        lses.append(seen.sinks.to(wide).unsqueeze(-1).expand(query.shape[:2]))
    if len(lses) == 1:
        return outs[0].to(query.dtype), lses[0]
    lse = torch.logsumexp(torch.stack(lses), 0)
    whole = torch.zeros_like(outs[0])
    for out, part in zip(outs, lses, strict=False):
        # A query that sees no key of a level has 0 / 0 there.
        whole += torch.where(part.isneginf().unsqueeze(-1), 0.0, out * (part - lse).exp_().unsqueeze(-1))
    return whole.to(query.dtype), lse


def _backward(saved: Sequence[Tensor], seen: Seen, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients on the pass's own queries, keys and values."""
    query, key, value, out, lse = saved
    scale = seen.scale
    d_query, d_key, d_value = (torch.zeros_like(of, dtype=lse.dtype) for of in (query, key, value))
    delta = (grad.to(lse.dtype) * out).sum(-1)
    for stretch in seen.stretches:
        keys, values = stretch.of(key, value)
        for block in stretch.blocks:
            wide_keys = by_group(block.keys.gather(keys))
            wide_values = by_group(block.keys.gather(values))
            queries = by_kv_head(block.queries.gather(query), keys.shape[0])
            grads = by_kv_head(block.queries.gather(grad), keys.shape[0])
            scores = _product(queries, wide_keys.transpose(-1, -2)).mul_(scale.scaling)
            slope = None
            if scale.softcap is not None:
                bent = scores.div_(scale.softcap).tanh_()
                slope = 1 - bent * bent
                scores = bent * scale.softcap
            scores = _hide(scores, block)
            weights = scores.sub_(by_kv_head(block.queries.gather(lse.unsqueeze(-1)), keys.shape[0])).exp_()
            d_scores = _product(grads, wide_values.transpose(-1, -2))
            d_scores.sub_(by_kv_head(block.queries.gather(delta.unsqueeze(-1)), keys.shape[0])).mul_(weights)
            if slope is not None:
                d_scores.mul_(slope)
            block.queries.add(d_query, by_head(_product(d_scores, wide_keys), block, query))
            if stretch.keys is None:
                block.keys.add(d_key, _ungroup(_product(d_scores.transpose(-1, -2), queries), block))
                block.keys.add(d_value, _ungroup(_product(weights.transpose(-1, -2), grads), block))
    return (
        d_query.mul_(scale.scaling).to(query.dtype),
        d_key.mul_(scale.scaling).to(key.dtype),
        d_value.to(value.dtype),
    )


def _scores(block: Block, query: Tensor, keys: Tensor, scale: Scale) -> Tensor:
    """Return the scores of a block, (kv_head and group, served head and query, key); minus infinity where hidden."""
    queries = by_kv_head(block.queries.gather(query), keys.shape[0])
    scores = _product(queries, by_group(block.keys.gather(keys)).transpose(-1, -2)).mul_(scale.scaling)
    if scale.softcap is not None:
        scores = scores.div_(scale.softcap).tanh_().mul_(scale.softcap)
    return _hide(scores, block)


def _hide(scores: Tensor, block: Block) -> Tensor:
    if block.visible is not None:
        n_groups, n_queries, n_keys = block.visible.shape
        by_head = scores.view(-1, n_groups, scores.shape[1] // n_queries, n_queries, n_keys)
        by_head.masked_fill_(~block.visible[:, None], -torch.inf)
    return scores


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices, in float32 at least."""
    narrow = {left.dtype, right.dtype} & {torch.float16, torch.bfloat16}
    if narrow and left.is_cuda:
        # As the card multiplies them fastest: narrow factors, sums in float32.
        (kind,) = narrow
        return torch.bmm(left.to(kind), right.to(kind), out_dtype=torch.float32)
    wide = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    return torch.bmm(left.to(wide), right.to(wide))


def by_group(values: Tensor) -> Tensor:
    """Return (kv_head, group, place, feature) as (kv_head and group, place, feature)."""
    return values.flatten(0, 1)


def by_kv_head(values: Tensor, n_kv_heads: int) -> Tensor:
    """Return (head, group, query, feature) as (kv_head and group, served head and query, feature)."""
    n_heads, n_groups, n_queries, n_features = values.shape
    served = n_heads // n_kv_heads
    grouped = values.view(n_kv_heads, served, n_groups, n_queries, n_features).transpose(1, 2)
    return grouped.reshape(n_kv_heads * n_groups, served * n_queries, n_features)


def by_head(values: Tensor, block: Block, query: Tensor) -> Tensor:
    """Return (kv_head and group, served head and query, feature) as (head, group, query, feature)."""
    n_groups, n_queries = block.queries.shape
    n_heads = query.shape[0]
    served = values.shape[1] // n_queries
    grouped = values.view(n_heads // served, n_groups, served, n_queries, values.shape[-1]).transpose(1, 2)
    return grouped.reshape(n_heads, n_groups, n_queries, values.shape[-1])


def _ungroup(values: Tensor, block: Block) -> Tensor:
    """Return (kv_head and group, key, feature) as (kv_head, group, key, feature)."""
    return values.view(-1, block.keys.shape[0], *values.shape[1:])
