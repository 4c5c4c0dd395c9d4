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

from attrib_batch.attribution.passes import fused
from attrib_batch.attribution.passes.blocks import Block
from attrib_batch.attribution.passes.fused import Runs

_LEAST = -1e30
"""In place of minus infinity as the largest score of a query that sees no key of a level."""


@dataclass(frozen=True)
class Scale:
    """How attention scores are made of products: ``scaling * q.k``, under a soft cap where the model has one."""

    scaling: float
    softcap: float | None = None


@dataclass(frozen=True)
class Stretch:
    """Keys and values that queries attend to, as (kv_head, key, feature), and how: by blocks, or by runs of a kernel.

    The last stretch of an attention is the queries' own: its keys and values are those of the pass, and None here.
    """

    keys: Float[Tensor, "kv_head key feature"] | None
    values: Float[Tensor, "kv_head key value_feature"] | None
    how: Sequence[Block] | Runs

    @property
    def blocks(self) -> Sequence[Block]:
        """Return the blocks, where it is computed by blocks: nothing else has second derivatives."""
        if isinstance(self.how, Runs):
            raise TypeError("a stretch that a kernel computes has no blocks")
        return self.how

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
        out, lse, ctx.kept = _forward(query, key, value, seen)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.seen = seen
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx.saved_tensors, ctx.kept, ctx.seen, grad), None)


def _forward(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor, list[fused.Kept]]:
    """Return what attention gives, the log-sum-exp of every query's scores, and what kernels keep of each stretch."""
    outs, lses, kept = [], [], []
    for stretch in seen.stretches:
        keys, values = stretch.of(key, value)
        if isinstance(stretch.how, Runs):
            found, lse, of_kernel = fused.forward(
                *_by_token(query, keys, values), runs=stretch.how, scaling=seen.scale.scaling
            )
            out = found.transpose(0, 1)
        else:
            (out, lse), of_kernel = _by_blocks(query, keys, values, stretch.how, seen.scale), ()
        outs.append(out)
        lses.append(lse)
        kept.append(of_kernel)
    if seen.sinks is not None:
        lses.append(seen.sinks.to(lses[0].dtype).unsqueeze(-1).expand(query.shape[:2]))
    if len(lses) == 1:
        return outs[0].to(query.dtype), lses[0], kept
    lse = torch.logsumexp(torch.stack(lses), 0)
    shares = [(part - lse).exp_().unsqueeze(-1) for part in lses[: len(outs)]]
    whole = outs[0] * shares[0]
    for out, share in zip(outs[1:], shares[1:], strict=True):
        whole.addcmul_(out.to(whole.dtype), share)
    return whole.to(query.dtype), lse, kept


def _by_blocks(
    query: Tensor, keys: Tensor, values: Tensor, blocks: Sequence[Block], scale: Scale
) -> tuple[Tensor, Tensor]:
    """Return what attention to one stretch gives, and its log-sum-exps; 0 and next to nothing where none is seen."""
    wide = torch.promote_types(query.dtype, torch.float32)
    out = query.new_zeros(*query.shape[:2], values.shape[-1], dtype=wide)
    lse = query.new_full(query.shape[:2], -torch.inf, dtype=wide)
    for block in blocks:
        scores = _scores(block, query, keys, scale)
        largest = scores.amax(-1, keepdim=True).clamp_(min=_LEAST)
        weights = scores.sub_(largest).exp_()
        # The largest has weight 1; only a query that sees no key of the block has less.
        total = weights.sum(-1, keepdim=True).clamp_(min=1.0)
        found = _product(weights, by_group(block.keys.gather(values))).div_(total)
        block.queries.put(out, by_head(found, block, query))
        block.queries.put(lse, by_head(largest.add_(total.log_()), block, query).squeeze(-1))
    return out, lse


def _backward(
    saved: Sequence[Tensor], kept: Sequence[fused.Kept], seen: Seen, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients on the pass's own queries, keys and values."""
    query, key, value, out, lse = saved
    found = tuple(torch.zeros_like(of, dtype=lse.dtype) for of in (query, key, value))
    delta = None
    for stretch, of_kernel in zip(seen.stretches, kept, strict=True):
        keys, values = stretch.of(key, value)
        own = stretch.keys is None
        if isinstance(stretch.how, Runs):
            by_token = _by_token(grad, query, keys, values, out)
            of_stretch = fused.backward(by_token[0], (*by_token[1:], lse), of_kernel, stretch.how, seen.scale.scaling)
            for whole, part in zip(found if own else found[:1], of_stretch, strict=False):
                whole.add_(part.transpose(0, 1))
            continue
        if delta is None:
            delta = (grad.to(lse.dtype) * out).sum(-1)
        taken = query, keys, values, grad, lse, delta
        for block in stretch.blocks:
            _block_backward(block, taken, seen.scale, found, own=own)
    d_query, d_key, d_value = (of.to(like.dtype) for of, like in zip(found, (query, key, value), strict=True))
    return d_query, d_key, d_value


def _block_backward(
    block: Block, taken: tuple[Tensor, ...], scale: Scale, found: tuple[Tensor, ...], *, own: bool
) -> None:
    """Add the gradients that a block brings to ``found``; on keys and values only if they are the pass's own."""
    query, keys, values, grad, lse, delta = taken
    d_query, d_key, d_value = found
    n_kv_heads = keys.shape[0]
    wide_keys = by_group(block.keys.gather(keys))
    wide_values = by_group(block.keys.gather(values))
    queries = by_kv_head(block.queries.gather(query), n_kv_heads)
    grads = by_kv_head(block.queries.gather(grad), n_kv_heads)
    scores = _product(queries, wide_keys.transpose(-1, -2)).mul_(scale.scaling)
    slope = None
    if scale.softcap is not None:
        bent = scores.div_(scale.softcap).tanh_()
        slope = 1 - bent * bent
        scores = bent * scale.softcap
    scores = _hide(scores, block)
    weights = scores.sub_(by_kv_head(block.queries.gather(lse.unsqueeze(-1)), n_kv_heads)).exp_()
    d_scores = _product(grads, wide_values.transpose(-1, -2))
    d_scores.sub_(by_kv_head(block.queries.gather(delta.unsqueeze(-1)), n_kv_heads)).mul_(weights)
    if slope is not None:
        d_scores.mul_(slope)
    block.queries.add(d_query, by_head(_product(d_scores, wide_keys).mul_(scale.scaling), block, query))
    if own:
        d_keys = _product(d_scores.transpose(-1, -2), queries).mul_(scale.scaling)
        block.keys.add(d_key, _ungroup(d_keys, block))
        block.keys.add(d_value, _ungroup(_product(weights.transpose(-1, -2), grads), block))


def _by_token(*values: Tensor) -> tuple[Tensor, ...]:
    """View (head, token, feature) as (token, head, feature)."""
    return tuple(of.transpose(0, 1) for of in values)


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
