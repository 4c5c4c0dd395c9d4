"""Attention by levels, against attention of every row alone, written out: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attrib_batch.attribution.passes import fused
from attrib_batch.attribution.passes.blocks import Group, Level
from attrib_batch.attribution.passes.cascade import Scale, Seen, Stretch, attend
from attrib_batch.attribution.passes.fused import Runs
from attrib_batch.attribution.passes.twice import attend_for_second_derivatives
from tests.support.device import TEST_DEVICE
from tests.support.near import assert_near

N_HEADS, N_KV_HEADS, FEATURES = 6, 2, 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """Rows of some lengths, each behind one of some prefixes; rows with one prefix stand next to each other."""

    prefixes: list[int]
    """Their lengths."""
    rows: list[tuple[int, int]]
    """For each row its prefix and its own length."""
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    most_products: int = 1 << 20


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prefixes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    which = draw(st.lists(st.integers(0, len(prefixes) - 1), min_size=1, max_size=6))
    rows = [(prefix, draw(st.integers(1, 7))) for prefix in sorted(which)]
    return Case(
        prefixes,
        rows,
        draw(st.none() | st.integers(1, 12)),
        draw(st.none() | st.just(3.0)),
        draw(st.booleans()),
        draw(st.sampled_from([1, 60, 1 << 20])),
    )


def tensors(case: Case) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Queries, keys and values of the rows, then keys and values of the prefixes, and sinks."""
    generator = torch.Generator().manual_seed(0)
    n_tokens, n_before = sum(length for _, length in case.rows), sum(case.prefixes)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    own = [random(heads, n_tokens, FEATURES).requires_grad_() for heads in (N_HEADS, N_KV_HEADS, N_KV_HEADS)]
    before = [random(N_KV_HEADS, n_before, FEATURES) for _ in range(2)]
    return own, before, random(N_HEADS) if case.sinks else None


def by_levels(
    case: Case, function: Callable[..., Tensor] = attend, *, by_runs: bool = False
) -> tuple[Tensor, list[Tensor]]:
    own, before, sinks = tensors(case)
    device = TEST_DEVICE if by_runs else CPU
    if device.type == "cuda":
        own, before = ([of.detach().to(device, torch.float32) for of in some] for some in (own, before))
        own = [of.requires_grad_() for of in own]
        sinks = None if sinks is None else sinks.to(device, torch.float32)
    starts = np.cumsum([0, *(length for _, length in case.rows)]).tolist()
    key_starts = np.cumsum([0, *case.prefixes]).tolist()
    positions = np.concatenate([case.prefixes[prefix] + np.arange(length) for prefix, length in case.rows])
    key_positions = np.concatenate([np.arange(length) for length in case.prefixes]).astype(np.int64)
    shared = []
    for prefix, length in enumerate(case.prefixes):
        members = [index for index, (of, _) in enumerate(case.rows) if of == prefix]
        if members and length:
            first, end = starts[members[0]], starts[members[-1] + 1]
            shared.append(Group(first, end - first, key_starts[prefix], length))
    levels = [(before, Level(shared, positions, key_positions))] if shared else []
    alone = [Group(start, length, start, length) for start, (_, length) in zip(starts, case.rows, strict=False)]
    levels.append(([None, None], Level(alone, positions, positions, causal=True)))
    stretches = []
    for held, level in levels:
        how = Runs.of(level, n_heads=N_HEADS, device=device) if by_runs else None
        blocks = level.blocks(case.window, n_heads=N_HEADS, most_products=case.most_products, device=device)
        assert (how is not None) is (by_runs and len(level.groups) >= fused.LEAST_RUNS)
        stretches.append(Stretch(*held, how or blocks))
    return function(*own, Seen(stretches, Scale(0.3, case.softcap), sinks)), own


def row_by_row(case: Case) -> tuple[Tensor, list[Tensor]]:
    own, before, sinks = tensors(case)
    query, key, value = own
    outs, start = [], 0
    for prefix, length in case.rows:
        first = sum(case.prefixes[:prefix])
        n_before = case.prefixes[prefix]
        keys, values = (
            torch.cat([old[:, first : first + n_before], new[:, start : start + length]], 1).repeat_interleave(
                N_HEADS // N_KV_HEADS, 0
            )
            for old, new in zip(before, (key, value), strict=True)
        )
        scores = query[:, start : start + length] @ keys.transpose(-1, -2) * 0.3
        if case.softcap is not None:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        distance = n_before + torch.arange(length)[:, None] - torch.arange(n_before + length)[None]
        hidden = (distance < 0) | (distance >= (case.window or n_before + length))
        scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(-1, length, 1)], -1)
        outs.append(scores.softmax(-1)[..., : n_before + length] @ values)
        start += length
    return torch.cat(outs, 1), own


def weighted(values: Sequence[Tensor]) -> Tensor:
    """A sum in which every number has a weight of its own."""
    return torch.stack(
        [(of * torch.linspace(-1, 1, of.numel(), dtype=torch.float64).view(of.shape).to(of)).sum() for of in values]
    ).sum()


def assert_equal(case: Case, *, by_runs: bool = False) -> None:
    found, mine = by_levels(case, by_runs=by_runs)
    expected, theirs = row_by_row(case)
    gradients = torch.autograd.grad(weighted([found]), mine)
    expected_gradients = torch.autograd.grad(weighted([expected]), theirs)
    # Sums of as many terms as there are queries, of size 1 or so.
    terms = 10.0 + found.shape[1]
    for ours, other in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        dtype = str(ours.dtype).removeprefix("torch.")
        assert_near(ours.cpu(), other, terms, dtype=dtype, float32_steps=0)


def assert_equal_to_second_order(case: Case) -> None:
    of_both = []
    for out, own in (by_levels(case, attend_for_second_derivatives), row_by_row(case)):
        gradients = torch.autograd.grad(weighted([out]), own, create_graph=True)
        second = torch.autograd.grad(weighted(gradients), own)
        of_both.append((out, *gradients, *second))
    terms = 10.0 + of_both[0][0].shape[1]
    for ours, other in zip(*of_both, strict=True):
        assert_near(ours, other, terms, dtype="float64", float32_steps=0)


@given(cases())
def test_levels_joined_are_attention_to_all_keys(case: Case) -> None:
    assert_equal(case)


@pytest.mark.parametrize("window", [None, 100])
def test_a_long_row_is_cut_and_gives_the_same(window: int | None) -> None:
    assert_equal(Case([5, 40], [(0, 600), (1, 3)], window))


def test_a_prefix_behind_the_window_is_not_seen_at_all() -> None:
    assert_equal(Case([3], [(0, 9)], window=2))


@given(cases())
def test_second_derivatives_are_those_of_attention_to_all_keys(case: Case) -> None:
    assert_equal_to_second_order(case)


def test_second_derivatives_behind_a_window_that_hides_a_prefix() -> None:
    assert_equal_to_second_order(Case([3], [(0, 9)], window=2, softcap=3.0, sinks=True))


def test_gradients_are_those_of_finite_differences() -> None:
    case = Case([4], [(0, 2), (0, 3)], softcap=2.0, sinks=True)
    own, before, sinks = tensors(case)
    positions = np.array([4, 5, 4, 5, 6])
    groups = [Group(0, 2, 0, 2), Group(2, 3, 2, 3)]
    options = {"n_heads": N_HEADS, "most_products": 1 << 20, "device": CPU}
    blocks = Level([Group(0, 5, 0, 4)], positions, np.arange(4)).blocks(None, **options)
    seen = Seen(
        [
            Stretch(before[0], before[1], blocks),
            Stretch(None, None, Level(groups, positions, positions, causal=True).blocks(None, **options)),
        ],
        Scale(0.5, 2.0),
        sinks,
    )
    assert torch.autograd.gradcheck(lambda *of: attend(*of, seen), own)


def test_nothing_of_the_size_of_all_scores_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def pack(values: Tensor) -> Tensor:
        kept.append(values.numel())
        return values

    case = Case([500], [(0, 5)] * 8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values):
        by_levels(case)
    assert sum(kept) < N_HEADS * 40 * 500


def scores_of_runs(
    q: Tensor, k: Tensor, runs: Runs, scaling: float
) -> Iterator[tuple[tuple[int, slice], tuple[int, slice], Tensor]]:
    """For each range, or row of several runs, where its queries and its keys are, and the scores (head, query, key)."""
    mask, q_ends, k_ends, *_ = runs.arguments(q)
    if mask is not None:
        for row in range(len(q)):
            scores = torch.einsum("qhf,khf->hqk", q[row], k[row]) * scaling + mask[row]
            yield (row, slice(None)), (row, slice(None)), scores
        return
    for (q_start, q_end), (k_start, k_end) in zip(pairwise(q_ends.tolist()), pairwise(k_ends.tolist()), strict=True):
        queries, keys = slice(q_start, q_end), slice(k_start, k_end)
        scores = torch.einsum("qhf,khf->hqk", q[0, queries], k[0, keys]) * scaling
        if runs.hides == fused.FROM_THE_FIRST:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
        yield (0, queries), (0, keys), scores


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch's kernel promises, range by range: it has none for a CPU. On a GPU, the kernel itself."""
    if TEST_DEVICE.type == "cuda":
        return

    def forward(q: Tensor, k: Tensor, v: Tensor, runs: Runs, scaling: float) -> tuple[Tensor, ...]:
        longest = runs.seen.longest[0] if isinstance(runs.seen, fused.Ranges) else q.shape[1]
        width = -(-longest // fused.ALIGNED) * fused.ALIGNED
        out, tables = torch.empty_like(q), []
        for queries, keys, scores in scores_of_runs(q, k, runs, scaling):
            out[queries] = torch.einsum("hqk,khf->qhf", scores.softmax(-1), v[keys])
            tables.append(q.new_full((q.shape[2], width), torch.nan))
            tables[-1][:, : scores.shape[1]] = scores.logsumexp(-1)
        return out, torch.stack(tables), torch.tensor(7)

    def backward(
        grad: Tensor, saved: tuple[Tensor, ...], kept: tuple[Tensor, ...], runs: Runs, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, table = saved
        assert [of.item() for of in kept] == [7]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for row, (queries, keys, scores) in zip(table, scores_of_runs(q, k, runs, scaling), strict=True):
            n_queries = scores.shape[1]
            assert row[:, n_queries:].isposinf().all()
            weights = (scores - row[:, :n_queries].unsqueeze(-1)).exp()
            delta = (grad[queries] * out[queries]).sum(-1).T.unsqueeze(-1)
            d_scores = weights * (torch.einsum("qhf,khf->hqk", grad[queries], v[keys]) - delta) * scaling
            dq[queries] = torch.einsum("hqk,khf->qhf", d_scores, k[keys])
            dk[keys] = torch.einsum("hqk,qhf->khf", d_scores, q[queries])
            dv[keys] = torch.einsum("hqk,qhf->khf", weights, grad[queries])
        return dq, dk, dv

    monkeypatch.setattr(fused, "kernel_forward", forward)
    monkeypatch.setattr(fused, "kernel_backward", backward)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "case",
    [
        Case([0], [(0, 3)] * 9),
        Case([4], [(0, 3), *[(0, 5)] * 9], sinks=True),
        # Every row behind a prefix of its own, one behind none, prefixes that no row has.
        Case([2, 5, 0, 3, 1, 9, 4, 7, 2, 6, 40], [(n, 1 + n % 4) for n in range(11)]),
        Case([2, 5, 3, 1, 9, 4, 7, 2, 6, 4], [(n, 1 + n % 4) for n in (0, 1, 2, 4, 5, 6, 7, 9, 9)]),
        # Several to a row, and several rows; then longer than a row takes.
        Case([30, 20, 50, 64, 1, 2, 60, 33, 64, 7], [(n, 5 + 6 * n) for n in range(10)]),
        Case([30, 20, 50, 64, 1, 2, 60, 33, 64, 90], [(n, 70 - 6 * n) for n in range(10)]),
    ],
)
def test_runs_of_a_kernel_joined_are_attention_to_all_keys(case: Case) -> None:
    assert_equal(case, by_runs=True)


def test_few_runs_or_a_table_too_large_are_left_to_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = np.arange(2 * fused.LEAST_RUNS)
    groups = [Group(2 * n, 2, 2 * n, 2) for n in range(fused.LEAST_RUNS)]
    level = Level(groups, positions, positions, causal=True)
    found = Runs.of(level, n_heads=N_HEADS, device=CPU)
    assert found is not None
    assert found.queries.shape == (1, len(positions))
    assert Runs.of(Level(groups[1:], positions, positions), n_heads=N_HEADS, device=CPU) is None
    # Longer than a row of several runs takes.
    positions = np.arange(100 * fused.LEAST_RUNS)
    level = Level([Group(100 * n, 100, 100 * n, 100) for n in range(fused.LEAST_RUNS)], positions, positions)
    found = Runs.of(level, n_heads=N_HEADS, device=CPU)
    assert found is not None
    assert isinstance(found.seen, fused.Ranges)
    monkeypatch.setattr(fused, "MOST_PADDED", N_HEADS * 128 * fused.LEAST_RUNS - 1)
    assert Runs.of(level, n_heads=N_HEADS, device=CPU) is None
