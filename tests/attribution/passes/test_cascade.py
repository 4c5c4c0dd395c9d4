"""Attention by levels, against attention of every row alone, written out: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attrib_batch.attribution.passes.blocks import Group, Level
from attrib_batch.attribution.passes.cascade import Scale, Seen, Stretch, attend
from attrib_batch.attribution.passes.twice import attend_for_second_derivatives
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


def by_levels(case: Case, function: Callable[..., Tensor] = attend) -> tuple[Tensor, list[Tensor]]:
    own, before, sinks = tensors(case)
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
    stretches = [
        Stretch(*held, level.blocks(case.window, n_heads=N_HEADS, most_products=case.most_products, device=CPU))
        for held, level in levels
    ]
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
        [(of * torch.linspace(-1, 1, of.numel(), dtype=torch.float64).view_as(of)).sum() for of in values]
    ).sum()


def assert_equal(case: Case) -> None:
    found, mine = by_levels(case)
    expected, theirs = row_by_row(case)
    gradients = torch.autograd.grad(weighted([found]), mine)
    expected_gradients = torch.autograd.grad(weighted([expected]), theirs)
    # Sums of as many terms as there are queries, of size 1 or so.
    terms = 10.0 + found.shape[1]
    for ours, other in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert_near(ours, other, terms, dtype="float64", float32_steps=0)


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
