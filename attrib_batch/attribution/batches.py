"""Micro-batches: pairs that are computed together, and the fewest forward rows that score them.

A prompt that is clean in one pair and corrupted in another is one row, not two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Direction

Tokens = tuple[int, ...]


def suffix_tokens(batch: Sequence[EncodedPair]) -> int:
    """Count the positions from the first difference on, of clean and corrupted prompts together.

    Of whole answers each is passed behind both prompts.
    """
    return sum(2 * pair.n_continuations * (pair.n_row_tokens - pair.first_difference) for pair in batch)


def in_order(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """Sort pairs so that those with the same prefix, and those that are each other's mirror, are neighbours."""
    return sorted(pairs, key=lambda pair: (*sorted((pair.clean, pair.corrupted)), pair.pair_id))


def by_shape(pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
    """Divide pairs, in order, into those of one length and one first difference, and answers of one length."""
    shapes: dict[tuple[int, int, int], list[EncodedPair]] = defaultdict(list)
    for pair in in_order(pairs):
        shapes[pair.n_tokens, pair.first_difference, pair.n_predicted].append(pair)
    return list(shapes.values())


def by_cost(pairs: Sequence[EncodedPair], pass_tokens: int) -> list[list[EncodedPair]]:
    """Divide pairs into those that are computed together as rows of one length, behind prefixes of one length.

    Rows are as long as the longest, behind the shortest prefix; shapes are put together as long as what that adds in
    positions costs less than further passes do.

    Args:
        pairs: pairs of any shapes.
        pass_tokens: what a pass costs whatever it computes, in positions.
    """
    found: list[list[EncodedPair]] = []
    rows = longest = shortest = 0
    for shape in sorted(by_shape(pairs), key=lambda shape: (shape[0].first_difference, shape[0].n_row_tokens)):
        pair, more = shape[0], sum(2 * pair.n_continuations for pair in shape)
        alone = more * (pair.n_row_tokens - pair.first_difference)
        n_tokens, first = max(longest, pair.n_row_tokens), min(shortest, pair.first_difference)
        together = (rows + more) * (n_tokens - first)
        if found and together <= rows * (longest - shortest) + alone + pass_tokens:
            found[-1] += shape
            rows, longest, shortest = rows + more, n_tokens, first
        else:
            found.append(list(shape))
            rows, longest, shortest = more, pair.n_row_tokens, pair.first_difference
    return found


@dataclass(frozen=True)
class Size:
    """What the memory of a micro-batch depends on."""

    suffix_tokens: int
    """Suffix positions of clean and corrupted prompts together, padding included."""
    prefix_tokens: int
    """Positions of prefixes whose keys and values are held; copies count."""
    rows: int
    """Places whose logits are read: one of a prompt, or one for every token of a whole answer."""


def micro_batches(
    pairs: Sequence[EncodedPair], fits: Callable[[Size], bool], *, padded: bool
) -> Iterator[list[EncodedPair]]:
    """Cut pairs that may be computed together into micro-batches, in their order.

    Args:
        pairs: pairs that may be computed together, in order of their prefixes.
        fits: whether a micro-batch is small enough; a single pair need not be.
        padded: whether all rows are as long as the longest, behind the shortest prefix, with a copy of it each.
    """
    batch: list[EncodedPair] = []
    grow: type[_PaddedSize | _PackedSize] = _PaddedSize if padded else _PackedSize
    size = grow()
    for pair in pairs:
        larger = size.with_pair(pair)
        if batch and not fits(larger.size):
            yield batch
            batch, larger = [], grow().with_pair(pair)
        batch.append(pair)
        size = larger
    if batch:
        yield batch


def size_of(pairs: Sequence[EncodedPair], *, padded: bool) -> Size:
    """Return the size of a micro-batch; ``pairs`` are in order of their prefixes."""
    size: _PaddedSize | _PackedSize = _PaddedSize() if padded else _PackedSize()
    for pair in pairs:
        size = size.with_pair(pair)
    return size.size


@dataclass(frozen=True)
class _PackedSize:
    """The size of pairs whose suffixes are packed, and whose prefixes are held once."""

    size: Size = Size(0, 0, 0)
    last: Tokens = ()
    """The first prompt of the last pair."""
    held: int = 0
    """How many of its tokens are in prefixes."""

    def with_pair(self, pair: EncodedPair) -> _PackedSize:
        prompt = min(pair.clean, pair.corrupted)
        # In order, no earlier prompt begins with more of this one's tokens than the last does.
        held = min(self.held, _common(self.last, prompt)) if self.held else 0
        new = max(0, pair.first_difference - held)
        size = self.size
        return _PackedSize(
            Size(size.suffix_tokens + suffix_tokens([pair]), size.prefix_tokens + new, size.rows + _places(pair)),
            prompt,
            held + new,
        )


@dataclass(frozen=True)
class _PaddedSize:
    """The size of pairs whose rows are of one length, behind copies of prefixes of one length."""

    rows: int = 0
    longest: int = 0
    shortest: int = 0
    places: int = 0

    @property
    def size(self) -> Size:
        return Size(self.rows * (self.longest - self.shortest), self.rows * self.shortest, self.places)

    def with_pair(self, pair: EncodedPair) -> _PaddedSize:
        shortest = min(self.shortest, pair.first_difference) if self.rows else pair.first_difference
        rows = self.rows + 2 * pair.n_continuations
        return _PaddedSize(rows, max(self.longest, pair.n_row_tokens), shortest, self.places + _places(pair))


def _places(pair: EncodedPair) -> int:
    """Count the places of a pair whose logits are read."""
    return 2 * pair.n_continuations * pair.n_predicted


def _common(first: Tokens, second: Tokens) -> int:
    """Count the tokens that both begin with."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


@dataclass(frozen=True)
class Row:
    """A prompt, and its first position that a pass computes; what is before it is its prefix."""

    tokens: Tokens
    first: int
    n_predicting: int = 1
    """At how many of its last tokens the logits are read."""


def base_and_other(pair: EncodedPair, direction: Direction) -> tuple[Tokens, Tokens]:
    """Return the prompt that is patched, and the prompt whose activations are patched in, as a pass computes them."""
    clean, corrupted = pair.clean + pair.continuation, pair.corrupted + pair.continuation
    return (corrupted, clean) if direction == "denoise" else (clean, corrupted)


def rows_of(pairs: Sequence[EncodedPair]) -> dict[Tokens, Row]:
    """Return for each prompt of pairs its row, which begins where the first of its pairs begins to differ."""
    first: dict[Tokens, int] = {}
    for pair in pairs:
        for tokens in base_and_other(pair, "denoise"):
            first[tokens] = min(pair.first_difference, first.get(tokens, pair.first_difference))
    n_predicting = max(pair.n_predicted for pair in pairs)
    return {tokens: Row(tokens, at, n_predicting) for tokens, at in first.items()}


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
