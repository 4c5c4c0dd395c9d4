"""Micro-batches and the rows of a forward pass, for any pairs: prompts that recur, mirrors, shared answers."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from attrib_batch.attribution.batches import (
    Request,
    Size,
    Tokens,
    base_and_other,
    by_cost,
    by_shape,
    in_order,
    micro_batches,
    plan_rows,
    rows_of,
    size_of,
    suffix_tokens,
)
from attrib_batch.pairs.encoding.encode import EncodedPair

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = (5, 6)
"""So few that prompts recur."""
ANSWERS = st.sampled_from([((1,), (2,)), ((2,), (1,)), ((1, 3), (2,)), ((1,), (3,))])


def pair(pair_id: int, clean: Tokens, corrupted: Tokens, answers: tuple[Tokens, Tokens] = ((1,), (2,))) -> EncodedPair:
    differs = [position for position, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    return EncodedPair(
        pair_id, clean, corrupted, *answers, first_difference=min(differs, default=len(clean) - 1),
        roles=(None,) * len(clean), template=None, group=None,
    )  # fmt: skip


@st.composite
def prompts(draw: st.DrawFn, length: int) -> Tokens:
    return tuple(draw(st.lists(st.sampled_from(WORDS), min_size=length, max_size=length)))


@st.composite
def many_pairs(draw: st.DrawFn, lengths: st.SearchStrategy[int]) -> list[EncodedPair]:
    """Pairs with ids in no order; some are the mirror of the one before."""
    made: list[tuple[Tokens, Tokens, tuple[Tokens, Tokens]]] = []
    for _ in range(draw(st.integers(1, 8))):
        length = draw(lengths)
        clean, corrupted, answers = draw(prompts(length)), draw(prompts(length)), draw(ANSWERS)
        made.append((clean, corrupted, answers))
        if draw(st.booleans()):
            made.append((corrupted, clean, answers))
    ids = draw(st.permutations(range(len(made))))
    return [pair(number, *parts) for number, parts in zip(ids, made, strict=True)]


ANY_SHAPE = many_pairs(st.integers(1, 4))
ONE_LENGTH = st.integers(2, 4).flatmap(lambda length: many_pairs(st.just(length)))
REQUESTS = st.lists(
    st.builds(Request, st.sampled_from(["denoise", "noise"]), st.sampled_from(["logit_diff", "prob_diff"])),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


TWINS = [
    pair(number, clean, corrupted, answers)
    for number, (clean, corrupted, answers) in enumerate([
        ((5, 5), (6, 5), ((1,), (2,))), ((5, 5), (6, 5), ((1,), (3,))), ((5, 5), (6, 5), ((4,), (2,))),
        ((6, 5), (5, 5), ((1,), (2,))), ((6, 6), (5, 5), ((1,), (2,))),
    ])
]  # fmt: skip
"""Pairs that differ in one of all that a gradient depends on."""
BOTH = [Request("denoise", "logit_diff"), Request("noise", "logit_diff"), Request("denoise", "prob_diff")]


def shape(pair: EncodedPair) -> tuple[int, int]:
    return pair.n_tokens, pair.first_difference


def within(budget: int) -> Callable[[Size], bool]:
    return lambda size: size.suffix_tokens <= budget


def cut(pairs: list[EncodedPair], budget: int) -> list[list[EncodedPair]]:
    return list(micro_batches(in_order(pairs), within(budget), padded=False))


@given(ANY_SHAPE, st.integers(1, 40))
def test_every_pair_is_in_one_micro_batch(pairs: list[EncodedPair], budget: int) -> None:
    batches = cut(pairs, budget)
    assert Counter(found.pair_id for batch in batches for found in batch) == Counter(asked.pair_id for asked in pairs)
    for batch in batches:
        assert len(batch) == 1 or suffix_tokens(batch) <= budget
    for batch, following in pairwise(batches):
        assert suffix_tokens([*batch, following[0]]) > budget, "it had room for another"


@given(ANY_SHAPE, st.integers(1, 200))
def test_padded_micro_batches_keep_to_the_budget_with_their_padding(pairs: list[EncodedPair], budget: int) -> None:
    batches = list(micro_batches(in_order(pairs), within(budget), padded=True))
    assert [found for batch in batches for found in batch] == in_order(pairs)
    for batch in batches:
        assert len(batch) == 1 or padded_tokens(batch) <= budget


def padded_tokens(batch: list[EncodedPair]) -> int:
    """What rows of one length behind the shortest prefix take."""
    longest = max(found.n_tokens for found in batch)
    return 2 * len(batch) * (longest - min(found.first_difference for found in batch))


@given(ANY_SHAPE)
def test_sizes_are_those_of_the_distinct_prefixes_and_of_all_suffixes(pairs: list[EncodedPair]) -> None:
    size = size_of(in_order(pairs), padded=False)
    starts = {found.clean[:end] for found in pairs for end in range(1, found.first_difference + 1)}
    assert size == Size(suffix_tokens(pairs), len(starts), 2 * len(pairs))
    if pairs:
        padded = size_of(pairs, padded=True)
        shortest = min(found.first_difference for found in pairs)
        assert padded == Size(padded_tokens(pairs), 2 * len(pairs) * shortest, 2 * len(pairs))


@given(ANY_SHAPE, st.integers(1, 40))
def test_pairs_of_the_same_prompts_are_neighbours(pairs: list[EncodedPair], budget: int) -> None:
    for members in ([found for batch in cut(pairs, budget) for found in batch], *by_shape(pairs)):
        runs = [prompts for prompts, _ in groupby(members, lambda found: frozenset((found.clean, found.corrupted)))]
        assert len(runs) == len(set(runs))


@given(ANY_SHAPE, st.integers(1, 40), st.randoms())
def test_micro_batches_do_not_depend_on_the_order_of_the_pairs(
    pairs: list[EncodedPair], budget: int, random: object
) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert cut(shuffled, budget) == cut(pairs, budget)
    assert by_cost(shuffled, 10) == by_cost(pairs, 10)


@given(ANY_SHAPE, st.integers(0, 60))
def test_shapes_are_put_together_where_that_costs_no_more_than_apart(pairs: list[EncodedPair], passes: int) -> None:
    divided = by_cost(pairs, passes)
    assert Counter(found.pair_id for batch in divided for found in batch) == Counter(found.pair_id for found in pairs)
    together = sum(padded_tokens(batch) + passes for batch in divided)
    apart = sum(padded_tokens(batch) + passes for batch in by_shape(pairs))
    assert together <= apart


def test_shapes_are_put_together_as_a_pass_costs() -> None:
    shapes = [pair(0, (1, 2, 3), (1, 4, 3)), pair(1, (1, 2, 3, 4), (1, 4, 3, 4))]
    # Two rows of two positions and two of three: padding adds two.
    assert [len(batch) for batch in by_cost(shapes, 1)] == [1, 1]
    assert [len(batch) for batch in by_cost(shapes, 2)] == [2]


def test_no_pair_makes_no_micro_batch() -> None:
    assert cut([], 8) == []
    assert by_cost([], 8) == []


def test_a_prompt_is_computed_from_the_first_difference_of_any_of_its_pairs() -> None:
    early, late = pair(0, (1, 2, 3), (4, 2, 3)), pair(1, (1, 2, 3), (1, 2, 5))
    rows = rows_of([late, early])
    assert {tokens: row.first for tokens, row in rows.items()} == {(1, 2, 3): 0, (4, 2, 3): 0, (1, 2, 5): 2}
    assert all(row.tokens == tokens for tokens, row in rows.items())


def test_denoising_takes_the_gradient_on_the_corrupted_prompt_and_noising_on_the_clean_one() -> None:
    found = pair(0, (5, 6), (6, 6))
    assert base_and_other(found, "denoise") == ((6, 6), (5, 6))
    assert base_and_other(found, "noise") == ((5, 6), (6, 6))


@given(ONE_LENGTH, REQUESTS)
@example(TWINS, BOTH)
def test_every_index_points_to_the_right_prompt(pairs: list[EncodedPair], requests: list[Request]) -> None:
    rows = plan_rows(pairs, requests)
    all_rows = [*rows.graph, *rows.plain]
    for number, request in enumerate(requests):
        assert len(rows.base[number]) == len(rows.other[number]) == len(pairs)
        for index, found in enumerate(pairs):
            base, other = base_and_other(found, request.direction)
            assert rows.graph[rows.base[number][index]] == base
            assert all_rows[rows.other[number][index]] == other


@given(ONE_LENGTH, REQUESTS)
@example(TWINS, BOTH)
def test_a_graph_row_carries_one_metric_and_each_is_carried_once(
    pairs: list[EncodedPair], requests: list[Request]
) -> None:
    rows = plan_rows(pairs, requests)

    def carried(number: int, index: int) -> tuple[object, ...]:
        """What the gradient of a pair's metric depends on, and the prompt that it is taken on."""
        found, request = pairs[index], requests[number]
        base, _ = base_and_other(found, request.direction)
        return base, request.metric, found.clean, found.answers, found.wrong_answers

    functions = [carried(*of) for of in rows.graph_of]
    assert len(functions) == len(rows.graph)
    assert len(set(functions)) == len(functions), "no function is differentiated twice"
    for number, of_request in enumerate(rows.base):
        for index, row in enumerate(of_request):
            assert functions[row] == carried(number, index)


@given(ONE_LENGTH, REQUESTS)
@example(TWINS, BOTH)
def test_a_prompt_is_computed_without_a_graph_once_and_only_if_it_must(
    pairs: list[EncodedPair], requests: list[Request]
) -> None:
    rows = plan_rows(pairs, requests)
    assert len(set(rows.plain)) == len(rows.plain)
    assert not set(rows.plain) & set(rows.graph)
    used = {row for of_request in rows.other for row in of_request}
    assert set(range(len(rows.graph), len(rows.graph) + len(rows.plain))) <= used, "nothing is computed for nobody"
