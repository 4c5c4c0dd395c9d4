"""Prefixes arranged in a tree: every prefix is on a path, and stretches are shared where that saves enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.attribution.passes.tree import DEEPEST, in_depth_order, prefix_tree

PREFIXES = st.lists(st.lists(st.integers(0, 2), max_size=8).map(tuple), max_size=8)


@given(PREFIXES, st.integers(1, 12))
def test_every_prefix_is_the_tokens_of_its_path(prefixes: list[tuple[int, ...]], least_saved: int) -> None:
    found = prefix_tree(prefixes, least_saved=least_saved)
    assert set(found) == set(prefixes)
    for prefix, end in found.items():
        path = end.path if end else ()
        assert tuple(token for node in path for token in node.tokens) == prefix
        assert all(node.tokens for node in path)
        assert [node.first for node in path] == [sum(len(n.tokens) for n in path[:i]) for i in range(len(path))]
        assert len(path) <= DEEPEST


@given(PREFIXES)
def test_a_tree_that_may_share_everything_has_no_more_tokens_than_distinct_starts_allow(
    prefixes: list[tuple[int, ...]],
) -> None:
    nodes = [node for level in in_depth_order(prefix_tree(prefixes, least_saved=1).values()) for node in level]
    apart = sum(map(len, set(prefixes)))
    starts = {prefix[:end] for prefix in prefixes for end in range(1, len(prefix) + 1)}
    assert len(starts) <= sum(len(node.tokens) for node in nodes) <= apart


def test_a_start_that_all_share_is_one_stretch_and_so_is_one_that_half_share() -> None:
    start, left, right = (1,) * 5, (2,) * 5, (3,) * 5
    prefixes = [(*start, *left, 7), (*start, *left, 8), (*start, *right, 7), (*start, *right, 8)]
    levels = in_depth_order(prefix_tree(prefixes, least_saved=5).values())
    assert [sorted(node.tokens for node in level) for level in levels] == [
        [start],
        [left, right],
        [(7,), (7,), (8,), (8,)],
    ]


def test_stretches_that_save_too_little_are_not_shared() -> None:
    (level,) = in_depth_order(prefix_tree([(1, 2, 3), (1, 2, 4)], least_saved=3).values())
    assert sorted(node.tokens for node in level) == [(1, 2, 3), (1, 2, 4)]


def test_many_prefixes_that_each_continue_the_one_before() -> None:
    prefixes = [tuple(range(length)) for length in range(1, 2000, 7)]
    assert set(prefix_tree(prefixes, least_saved=32)) == set(prefixes)
