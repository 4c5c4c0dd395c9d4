"""Attention of many short runs of queries, each to its own run of keys, in one kernel; on GPUs alone.

`cascade` needs for every stretch what attention gives and the log-sum-exp of its scores, and for the backward pass
gradients from the log-sum-exp over all stretches. The memory-efficient attention of PyTorch gives the first, takes the
second, and never writes scores to memory. It computes float32 products in float32 (as three products in TF32, which
together have its precision) and adds up in float32.

The kernel works on tiles of 64 or 128 queries and as many keys. Short runs are put together into rows of that size, and
an added mask hides from each run the others; longer ones are handed over as ranges of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib_batch.attribution.passes.blocks import Level
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.models.devices import on_device

LEAST_RUNS = 8
"""With fewer runs, each is long or little work: products by blocks are as fast."""
TILE = 128
"""Queries, and keys, of a row of several runs."""
MOST_PADDED = 1 << 26
"""Most log-sum-exps in the kernel's table, which has as many places for every row as for the longest: 256 MiB."""
ALIGNED = 32
"""The kernel's table of log-sum-exps has a multiple of so many places a row."""
ALIGNED_KEYS = 8
"""The keys of a mask are a multiple of so many."""
ALIGNED_BYTES = 16
"""The features of a head take a multiple of so many bytes."""
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
FROM_THE_FIRST = 1
"""The kernel's number for: the query at place i of a range sees the keys up to place i."""
WHOLE = 0
"""The kernel's number for: every query of a row, or range, sees all of its keys."""
HIDDEN = -1e30
"""What is added to a score that does not count; no infinity, of which a row of padding would make no number."""


@dataclass(frozen=True)
class Slots:
    """Tokens in the rows that the kernel takes."""

    shape: tuple[int, int]
    """Rows, and places of each."""
    tokens: Index
    """Those that any run has, run by run."""
    padded: Int[Tensor, " slot"] | None
    """The token of every place, any where there is none; None where all places have one, and in order."""
    places: Int[Tensor, " token"] | None
    """The place of every token."""

    def take(self, values: Float[Tensor, "token head feature"]) -> Float[Tensor, "row place head feature"]:
        """Return the rows, with features next to each other."""
        found = self.tokens.take(values) if self.padded is None else values.index_select(0, self.padded)
        return (found if found.stride(-1) == 1 else found.contiguous()).view(*self.shape, *found.shape[1:])

    def tokens_of(self, rows: Float[Tensor, "row place head feature"]) -> Float[Tensor, "token head feature"]:
        """Return what the rows have for each token of a run."""
        flat = rows.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)


@dataclass(frozen=True)
class Ranges:
    """Queries and keys of runs of any lengths, one run behind the other."""

    query_ends: Int[Tensor, " run_and_one"]
    """Where each run of queries begins, and where the last ends."""
    key_ends: Int[Tensor, " run_and_one"]
    longest: tuple[int, int]
    """The most queries, and keys, of a run."""


@dataclass(frozen=True)
class Runs:
    """Which queries see which keys, as the kernel is told."""

    queries: Slots
    keys: Slots
    seen: Ranges | Bool[Tensor, "row query key"]
    """Ranges of which each sees its own, or what is seen in rows of several runs."""
    table_shape: tuple[int, int]
    """Rows, or ranges, of the kernel's table of log-sum-exps, and the places of each."""
    table_places: Int[Tensor, " token"]
    """For each query of a run its place in the table."""
    causal: bool

    @classmethod
    def of(cls, level: Level, *, n_heads: int, device: torch.device) -> Runs | None:
        """Return the runs of a level; None where blocks suit it better."""
        if len(level.groups) < LEAST_RUNS:
            return None
        query, n_queries, key, n_keys = np.array(level.groups, dtype=np.int64).T
        tokens = Index(ranges(query, n_queries)), Index(ranges(key, n_keys))
        if max(n_queries.max(), n_keys.max()) <= TILE // 2:
            return cls._in_rows(tokens, (n_queries, n_keys), causal=level.causal, device=device)
        width = _up(int(n_queries.max()), ALIGNED)
        if len(query) * width * n_heads > MOST_PADDED:
            return None
        ends = [np.concatenate([[0], np.cumsum(count)]) for count in (n_queries, n_keys)]
        places = ranges(np.arange(len(query)) * width, n_queries)
        q_ends, k_ends = (on_device(of.astype(np.int32), device) for of in ends)
        queries, keys = (Slots((1, len(of)), of, None, None) for of in tokens)
        return cls(
            queries,
            keys,
            seen=Ranges(q_ends, k_ends, (int(n_queries.max()), int(n_keys.max()))),
            table_shape=(len(query), width),
            table_places=on_device(places, device),
            causal=level.causal,
        )

    @classmethod
    def _in_rows(
        cls, tokens: tuple[Index, Index], count: tuple[np.ndarray, np.ndarray], *, causal: bool, device: torch.device
    ) -> Runs:
        """Put several runs into each row, in order, as many as a tile takes."""
        rows, starts = _fill(*count)
        n_rows = int(rows[-1]) + 1
        widths = [_up(int((start + of).max()), ALIGNED_KEYS) for start, of in zip(starts, count, strict=True)]
        slots: list[Slots] = []
        numbers: list[np.ndarray] = []
        within: list[np.ndarray] = []
        for of, start, n, width in zip(tokens, starts, count, widths, strict=True):
            place = ranges(rows * width + start, n)
            padded = np.zeros(n_rows * width, dtype=np.int64)
            padded[place] = of.places
            slots.append(Slots((n_rows, width), of, on_device(padded, device), on_device(place, device)))
            # Where there is no token: the number of no run, and another for queries than for keys.
            run = np.full(n_rows * width, -1 - len(numbers), dtype=np.int32)
            run[place] = np.repeat(np.arange(len(n)), n)
            numbers.append(run.reshape(n_rows, width))
            position = np.zeros(n_rows * width, dtype=np.int32)
            position[place] = ranges(np.zeros_like(n), n)
            within.append(position.reshape(n_rows, width))
        visible = numbers[0][:, :, None] == numbers[1][:, None, :]
        if causal:
            visible &= within[0][:, :, None] >= within[1][:, None, :]
        width = _up(widths[0], ALIGNED)
        queries, keys = slots
        return cls(
            queries,
            keys,
            seen=on_device(visible, device),
            table_shape=(n_rows, width),
            table_places=on_device(ranges(rows * width + starts[0], count[0]), device),
            causal=causal,
        )

    def arguments(self, query: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, int | None, int | None]:
        """Return what the kernel is told of them: a mask, or the ends of ranges and the longest."""
        if isinstance(self.seen, Ranges):
            return None, self.seen.query_ends, self.seen.key_ends, *self.seen.longest
        mask = torch.where(self.seen, 0.0, max(HIDDEN, torch.finfo(query.dtype).min)).to(query.dtype)
        return mask.unsqueeze(1).expand(-1, query.shape[2], -1, -1), None, None, None, None

    @property
    def hides(self) -> int:
        """What the kernel hides of ranges."""
        return FROM_THE_FIRST if self.causal and isinstance(self.seen, Ranges) else WHOLE


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
    rows, table, *kept = kernel_forward(q, k, v, runs, scaling)
    out = runs.queries.tokens_of(rows)
    lse = table.transpose(0, 1).flatten(1).index_select(1, runs.table_places)
    tokens = runs.queries.tokens
    if tokens.is_all_of(len(query)):
        return out, lse, tuple(kept)
    at = tokens.on(query.device)
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
    tokens = runs.queries.tokens
    all_queries = tokens.is_all_of(len(query))
    # A place without a query: exp(score - infinity) is 0.
    n_rows, width = runs.table_shape
    table = lse.new_full((n_heads, n_rows * width), torch.inf)
    table.index_copy_(1, runs.table_places, lse if all_queries else lse.index_select(1, tokens.on(lse.device)))
    by_row = table.view(n_heads, n_rows, width).transpose(0, 1).contiguous()
    dq, dk, dv = kernel_backward(g, (q, k, v, o, by_row), kept, runs, scaling)
    d_query = runs.queries.tokens_of(dq)
    if not all_queries:
        d_query = dq.new_zeros(query.shape).index_copy_(0, tokens.on(dq.device), d_query)
    d_key, d_value = (
        _spread(_for_kv_heads(runs.keys.tokens_of(of), n_kv_heads), runs.keys.tokens, like)
        for of, like in ((dk, key), (dv, value))
    )
    return d_query, d_key, d_value


def kernel_forward(q: Tensor, k: Tensor, v: Tensor, runs: Runs, scaling: float) -> tuple[Tensor, ...]:
    """Call PyTorch's kernel; return its output, its table (row, head, place) of log-sum-exps, and what it keeps."""
    out, table, *kept, _, _ = torch.ops.aten._efficient_attention_forward(
        q, k, v, *runs.arguments(q), 0.0, runs.hides, True, scale=scaling
    )
    return out, table, *kept


def kernel_backward(
    grad: Tensor, saved: tuple[Tensor, ...], kept: Kept, runs: Runs, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Call PyTorch's kernel; return the gradients on what it was called with."""
    q, k, v, out, table = saved
    mask, *ends, most_queries, most_keys = runs.arguments(q)
    longest = (q.shape[1], k.shape[1]) if most_queries is None else (most_queries, most_keys)
    found: Any = torch.ops.aten._efficient_attention_backward(
        grad, q, k, v, mask, out, *ends, *longest, table, 0.0, *kept, runs.hides, False, scale=scaling
    )
    return found[0], found[1], found[2]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _fill(n_queries: np.ndarray, n_keys: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return for each run its row, and its first place among the row's queries and among its keys."""
    rows, q_starts, k_starts = [], [], []
    row = q_taken = k_taken = 0
    for queries, keys in zip(n_queries.tolist(), n_keys.tolist(), strict=True):
        if q_taken + queries > TILE or k_taken + keys > TILE:
            row, q_taken, k_taken = row + 1, 0, 0
        rows.append(row)
        q_starts.append(q_taken)
        k_starts.append(k_taken)
        q_taken, k_taken = q_taken + queries, k_taken + keys
    return np.array(rows), (np.array(q_starts), np.array(k_starts))


def _for_heads(values: Float[Tensor, "row key kv_head feature"], n_heads: int) -> Float[Tensor, "row key head feature"]:
    """Return the keys, or values, that each head has; the kernel knows no heads that share them."""
    served = n_heads // values.shape[2]
    return values if served == 1 else values.repeat_interleave(served, 2)


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
