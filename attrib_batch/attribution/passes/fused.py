"""Attention of many short runs of queries, each to its own run of keys, in one kernel; on GPUs alone.

`cascade` needs for every stretch what attention gives and the log-sum-exp of its scores, and for the backward pass
gradients from the log-sum-exp over all stretches. The memory-efficient attention of PyTorch takes runs of any lengths,
gives the first and takes the second, and never writes scores to memory. It computes float32 products in float32 (as
three products in TF32, which together have its precision) and adds up in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.passes.blocks import Level
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.models.devices import on_device

LEAST_RUNS = 8
"""With fewer runs, each is long or little work: products by blocks are as fast."""
MOST_PADDED = 1 << 26
"""Most log-sum-exps in the kernel's table, which has as many places for every run as for the longest: 256 MiB."""
ALIGNED = 32
"""The kernel's table of log-sum-exps has a multiple of so many places a run."""
ALIGNED_BYTES = 16
"""The features of a head take a multiple of so many bytes."""
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
FROM_THE_FIRST = 1
"""The kernel's number for: the query at place i of a run sees the keys up to place i."""
WHOLE = 0
"""The kernel's number for: every query of a run sees all of its keys."""


@dataclass(frozen=True)
class Runs:
    """Which queries see which keys: run by run, in the order in which both are handed to the kernel."""

    queries: Index
    keys: Index
    query_ends: Int[Tensor, " run_and_one"]
    """Where each run of queries begins, and where the last ends."""
    key_ends: Int[Tensor, " run_and_one"]
    longest: tuple[int, int]
    """The most queries, and keys, of a run."""
    place: Int[Tensor, " query"]
    """Where each query's log-sum-exp is in the kernel's table."""
    causal: bool

    @classmethod
    def of(cls, level: Level, *, n_heads: int, device: torch.device) -> Runs | None:
        """Return the runs of a level; None where blocks suit it better."""
        if len(level.groups) < LEAST_RUNS:
            return None
        query, n_queries, key, n_keys = np.array(level.groups, dtype=np.int64).T
        width = _width(int(n_queries.max()))
        if len(query) * width * n_heads > MOST_PADDED:
            return None
        query_ends, key_ends = (np.concatenate([[0], np.cumsum(count)]) for count in (n_queries, n_keys))
        shift = np.arange(len(query)) * width - query_ends[:-1]
        return cls(
            queries=Index(ranges(query, n_queries)),
            keys=Index(ranges(key, n_keys)),
            query_ends=on_device(query_ends.astype(np.int32), device),
            key_ends=on_device(key_ends.astype(np.int32), device),
            longest=(int(n_queries.max()), int(n_keys.max())),
            place=on_device(np.repeat(shift, n_queries) + np.arange(query_ends[-1]), device),
            causal=level.causal,
        )

    @property
    def mask(self) -> int:
        """What the kernel hides."""
        return FROM_THE_FIRST if self.causal else WHOLE


def serves(query: Tensor, value: Tensor, *, softcap: float | None) -> bool:
    """Return whether the kernel computes such attention; where results must be the same bits each time it does not."""
    aligned = all(of.shape[-1] * of.element_size() % ALIGNED_BYTES == 0 for of in (query, value))
    deterministic = torch.are_deterministic_algorithms_enabled()
    return query.is_cuda and query.dtype in DTYPES and aligned and softcap is None and not deterministic


Kept = tuple[Tensor, ...]
"""What the kernel's forward pass hands to its backward pass."""


def forward(
    query: Float[Tensor, "token head feature"],
    key: Float[Tensor, "key kv_head feature"],
    value: Float[Tensor, "key kv_head value_feature"],
    *,
    runs: Runs,
    scaling: float,
) -> tuple[Float[Tensor, "token head value_feature"], Float[Tensor, "head token"], Kept]:
    """Return what attention to the runs gives, the log-sum-exps, and what `backward` wants.

    A query of no run gets 0, and minus infinity.
    """
    n_heads = query.shape[1]
    q, k, v = runs.queries.take(query), *(_for_heads(runs.keys.take(of), n_heads) for of in (key, value))
    out, table, *kept = kernel_forward(q, k, v, runs, scaling)
    lse = table.transpose(0, 1).flatten(1).index_select(1, runs.place)
    if len(q) == len(query):
        return out, lse, tuple(kept)
    at = runs.queries.on(query.device)
    whole = out.new_zeros(len(query), *out.shape[1:]).index_copy_(0, at, out)
    return whole, lse.new_full((n_heads, len(query)), -torch.inf).index_copy_(1, at, lse), tuple(kept)


def backward(
    grad: Float[Tensor, "token head value_feature"],
    saved: Sequence[Tensor],
    kept: Kept,
    runs: Runs,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients on queries, keys and values that the runs bring.

    Args:
        grad: on what attention to all stretches gave.
        saved: queries, keys and values as `forward` took them, what attention to all stretches gave, and its
            log-sum-exps (head, token).
        kept: what `forward` returned.
        runs: of this stretch.
        scaling: of the scores.
    """
    query, key, value, out, lse = saved
    n_heads, n_kv_heads = query.shape[1], key.shape[1]
    q, g, o = (runs.queries.take(of) for of in (query, grad, out))
    k, v = (_for_heads(runs.keys.take(of), n_heads) for of in (key, value))
    n_runs, width = len(runs.query_ends) - 1, _width(runs.longest[0])
    # A place without a query: exp(score - infinity) is 0.
    table = lse.new_full((n_heads, n_runs * width), torch.inf)
    mine = lse if len(q) == len(query) else lse.index_select(1, runs.queries.on(lse.device))
    table.index_copy_(1, runs.place, mine)
    by_run = table.view(n_heads, n_runs, width).transpose(0, 1).contiguous()
    dq, dk, dv = kernel_backward(g, (q, k, v, o, by_run), kept, runs, scaling)
    if len(q) != len(query):
        dq = dq.new_zeros(len(query), *dq.shape[1:]).index_copy_(0, runs.queries.on(dq.device), dq)
    d_key, d_value = (_spread(_for_kv_heads(of, n_kv_heads), runs.keys, like) for of, like in ((dk, key), (dv, value)))
    return dq, d_key, d_value


def kernel_forward(q: Tensor, k: Tensor, v: Tensor, runs: Runs, scaling: float) -> tuple[Tensor, ...]:
    """Call PyTorch's kernel; return its output, its table (run, head, place) of log-sum-exps, and what it keeps."""
    out, table, *kept, _, _ = torch.ops.aten._efficient_attention_forward(
        *map(_batch_of_one, (q, k, v)), None, runs.query_ends, runs.key_ends, *runs.longest, 0.0, runs.mask, True,
        scale=scaling,
    )  # fmt: skip
    return out[0], table, *kept


def kernel_backward(
    grad: Tensor, saved: tuple[Tensor, ...], kept: Kept, runs: Runs, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Call PyTorch's kernel; return the gradients on what it was called with."""
    *tensors, table = saved
    g, q, k, v, out = map(_batch_of_one, (grad, *tensors))
    found: Any = torch.ops.aten._efficient_attention_backward(
        g, q, k, v, None, out, runs.query_ends, runs.key_ends, *runs.longest, table, 0.0, *kept, runs.mask, False,
        scale=scaling,
    )  # fmt: skip
    return found[0][0], found[1][0], found[2][0]


def _batch_of_one(values: Tensor) -> Tensor:
    """Return (1, token, head, feature) with features next to each other."""
    return (values if values.stride(-1) == 1 else values.contiguous()).unsqueeze(0)


def _width(longest: int) -> int:
    return -(-longest // ALIGNED) * ALIGNED


def _for_heads(values: Float[Tensor, "key kv_head feature"], n_heads: int) -> Float[Tensor, "key head feature"]:
    """Return the keys, or values, that each head has; the kernel knows no heads that share them."""
    served = n_heads // values.shape[1]
    return values if served == 1 else values.repeat_interleave(served, 1)


def _for_kv_heads(values: Float[Tensor, "key head feature"], n_kv_heads: int) -> Float[Tensor, "key kv_head feature"]:
    """Add up the gradients of heads that share keys."""
    n_keys, n_heads, n_features = values.shape
    if n_heads == n_kv_heads:
        return values
    return values.view(n_keys, n_kv_heads, -1, n_features).sum(2, dtype=torch.float32)


def _spread(values: Tensor, keys: Index, like: Tensor) -> Tensor:
    """Return gradients on all keys from those on the keys of runs."""
    if keys.is_all_of(len(like)):
        return values
    return values.new_zeros(like.shape).index_add_(0, keys.on(values.device), values)
