"""Micro-batches: pairs of one exact shape, and the fewest forward rows that score them.

All pairs of a micro-batch have the same length and the same first difference, so nothing is padded and every suffix
starts at the same position. A prompt that is clean in one pair and corrupted in another is one row, not two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Direction

Tokens = tuple[int, ...]


def suffix_tokens(batch: Sequence[EncodedPair]) -> int:
    """Count the positions from the first difference on, of clean and corrupted prompts together."""
    return sum(2 * (pair.n_tokens - pair.first_difference) for pair in batch)


def micro_batches(pairs: Sequence[EncodedPair], batch_tokens: int) -> Iterator[list[EncodedPair]]:
    """Split pairs into micro-batches of one shape, the largest first.

    Within a shape, pairs with the same prefix and pairs that are each other's mirror are neighbours, so that they meet
    in one micro-batch.

    Args:
        pairs: pairs of any shapes.
        batch_tokens: most suffix positions (of clean and corrupted prompts together) in one micro-batch; a single pair
            may exceed it.
    """
    shapes: dict[tuple[int, int], list[EncodedPair]] = defaultdict(list)
    for pair in pairs:
        shapes[pair.n_tokens, pair.first_difference].append(pair)
    batches = []
    for (n_tokens, first_difference), members in shapes.items():
        members.sort(key=lambda pair: (*sorted((pair.clean, pair.corrupted)), pair.pair_id))
        size = max(1, batch_tokens // (2 * (n_tokens - first_difference)))
        batches += [members[i : i + size] for i in range(0, len(members), size)]
    batches.sort(key=suffix_tokens, reverse=True)
    yield from batches


def base_and_other(pair: EncodedPair, direction: Direction) -> tuple[Tokens, Tokens]:
    """Return the prompt that is patched, and the prompt whose activations are patched in."""
    return (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)


@dataclass(frozen=True)
class Request:
    """On which of a pair's prompts the gradient is taken, and of what metric."""

    direction: Direction
    metric: str


@dataclass(frozen=True)
class Rows:
    """The forward rows of a micro-batch.

    ``graph`` rows carry the gradient of one metric each; ``plain`` rows are only read. Indices of ``other`` count the
    graph rows first, then the plain rows.
    """

    graph: list[Tokens]
    graph_of: list[tuple[int, int]]
    """For each graph row, a request and a pair whose metric it carries, by index."""
    plain: list[Tokens]
    base: list[list[int]]
    """For each request and pair, its graph row: that of the prompt on which the gradient is taken."""
    other: list[list[int]]
    """For each request and pair, the row whose activations are patched in."""


def plan_rows(pairs: Sequence[EncodedPair], requests: Sequence[Request]) -> Rows:
    """Plan the fewest rows that answer ``requests``: a prompt is one row however many pairs it stands in.

    Two pairs with the same base prompt share a graph row only when they have the same metric, answers and clean prompt,
    for otherwise they differentiate different functions.
    """
    graph: dict[tuple[Tokens, str, Tokens, Tokens, Tokens], int] = {}
    graph_of: list[tuple[int, int]] = []
    base: list[list[int]] = [[] for _ in requests]
    for number, request in enumerate(requests):
        for index, pair in enumerate(pairs):
            tokens, _ = base_and_other(pair, request.direction)
            key = (tokens, request.metric, pair.clean, pair.answers, pair.wrong_answers)
            if key not in graph:
                graph[key] = len(graph)
                graph_of.append((number, index))
            base[number].append(graph[key])
    row_of: dict[Tokens, int] = {}
    for (tokens, *_), row in graph.items():
        row_of.setdefault(tokens, row)
    plain: list[Tokens] = []
    other: list[list[int]] = [[] for _ in requests]
    for number, request in enumerate(requests):
        for pair in pairs:
            _, tokens = base_and_other(pair, request.direction)
            if tokens not in row_of:
                row_of[tokens] = len(graph) + len(plain)
                plain.append(tokens)
            other[number].append(row_of[tokens])
    return Rows([key[0] for key in graph], graph_of, plain, base, other)
