"""The rows of one part as arrays, checked on the way: what a worker had in memory when it wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from attrib_batch.errors import OutputError
from attrib_batch.spec.positions import ALL, LAST
from attrib_batch.tables import SCORES
from attrib_batch.tables.dense import DenseChunk, DenseScores, PairFacts, units_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.analysis.tables import Part
    from attrib_batch.spec import Cell

_NAMES = ("component", "role")
_KEYS = ("component", "layer", "head", "position", "role")


class _UnevenError(Exception):
    """Pairs do not all have the same components, layers and heads."""


def read_dense(cell: Cell, part: Part, at: str | Sequence[str], between: tuple[int, int] | None = None) -> DenseChunk:
    """Read a part.

    Args:
        cell: whose part it is, for messages.
        part: the part.
        at: the positions that its method was asked for.
        between: the least and the greatest id of the pairs that are wanted; row groups of others are not read.

    Raises:
        OutputError: scores are not finite, or do not belong to the baselines beside them: a mean would be wrong
            without showing it.
    """
    facts = _read_facts(part, between)
    table = part.scores.read(None if between is None else ("pair_id", *between)).unify_dictionaries().combine_chunks()
    _check_finite(part, table)
    try:
        try:
            chunk = _to_arrays(facts, table)
        except _UnevenError:
            # Another program may have written the file again, with the rows in another order.
            chunk = _to_arrays(facts, _sorted(table))
        _check_positions(chunk, at)
    except _UnevenError:
        raise OutputError(
            f"{part.scores} does not match its baselines file ({cell}): every component, layer and head must "
            f"have {_expected(facts, at)}. Remove both files and run the job again."
        ) from None
    return chunk


def select_pairs(chunk: DenseChunk, wanted: np.ndarray) -> DenseChunk:
    """Return the part of a chunk that holds some pairs; ``wanted`` says of each whether, shape (pair,)."""
    index = np.cumsum(wanted) - 1
    facts = chunk.facts
    blocks = []
    for block in chunk.blocks:
        kept = wanted[block.pairs]
        if kept.any():
            scores = {component: values[kept] for component, values in block.scores.items()}
            blocks.append(DenseScores(index[block.pairs[kept]], block.positions[kept], block.roles[kept], scores))
    places = np.flatnonzero(wanted).tolist()
    chosen = PairFacts(
        facts.pair_id[wanted],
        facts.n_tokens[wanted],
        facts.unit[wanted],
        facts.gap[wanted],
        [facts.template[place] for place in places],
        [facts.task[place] for place in places],
    )
    return DenseChunk(chosen, blocks, chunk.roles, chunk.heads)


def _read_facts(part: Part, between: tuple[int, int] | None) -> PairFacts:
    """Read what is known of a part's pairs; their tasks are not."""
    table = part.baselines.read(None if between is None else ("pair_id", *between)).sort_by("pair_id")
    pair_id = table["pair_id"].to_numpy()
    return PairFacts(
        pair_id=pair_id,
        n_tokens=table["n_tokens"].to_numpy().astype(np.int64),
        unit=units_of(pair_id, table["group"].to_pylist()),
        gap=table["clean_metric"].to_numpy() - table["corrupted_metric"].to_numpy(),
        template=table["template"].to_pylist(),
        task=[None] * len(pair_id),
    )


def _check_finite(part: Part, table: pa.Table) -> None:
    finite = np.isfinite(table["score"].to_numpy())
    if not finite.all():
        affected = np.unique(table["pair_id"].to_numpy()[~finite])
        raise OutputError(
            f"{part.scores}: {np.count_nonzero(~finite)} scores of {len(affected)} pairs are NaN or infinite (first "
            f"pair_id {affected[0]}). A run lists such pairs as failures and never stores them: the file is damaged, "
            "remove it and run the job again."
        )


def _sorted(table: pa.Table) -> pa.Table:
    """Bring rows into the order in which workers write them, or one like it."""
    columns = {name: _codes(table, name)[0] for name in ("position", "head", "layer", "component")}
    return table.take(pa.array(np.lexsort([*columns.values(), table["pair_id"].to_numpy()])))


def _codes(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """Return a column as numbers, -1 for null; and what the numbers stand for where they are codes of names."""
    column = table[name]
    array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    names = []
    if array.type != SCORES.field(name).type:
        # Another program may have written names without a dictionary, or with codes of another size.
        array = array.cast(pa.string()).dictionary_encode() if name in _NAMES else array.cast(SCORES.field(name).type)
    if pa.types.is_dictionary(array.type):
        names, array = array.dictionary.to_pylist(), array.indices
    return (array.fill_null(-1) if array.null_count else array).to_numpy(zero_copy_only=False), names


def _to_arrays(facts: PairFacts, table: pa.Table) -> DenseChunk:
    """Arrange rows, those of a pair next to each other and in one order for all pairs, as arrays."""
    columns, names = {}, {}
    for key in _KEYS:
        columns[key], names[key] = _codes(table, key)
    scores, ids = table["score"].to_numpy(), table["pair_id"].to_numpy()
    starts = np.flatnonzero(np.append(np.ones(min(1, len(ids)), bool), ids[1:] != ids[:-1]))
    lengths = np.diff(np.append(starts, len(ids)))
    found = np.searchsorted(facts.pair_id, ids[starts])
    twice = any(len(np.unique(some)) != len(some) for some in (facts.pair_id, ids[starts]))
    if twice or not np.isin(ids[starts], facts.pair_id).all():
        raise _UnevenError
    heads: dict[str, bool] = {}
    blocks = []
    for length in np.unique(lengths):
        these = np.flatnonzero(lengths == length)
        rows = _rows(starts[these], int(length))
        block, have = _block({key: values[rows] for key, values in columns.items()}, scores[rows], names["component"])
        if (heads or have) != have:
            raise _UnevenError
        heads = have
        blocks.append(DenseScores(found[these], *block))
    return DenseChunk(facts, blocks, names["role"], heads)


def _rows(starts: np.ndarray, length: int) -> np.ndarray:
    """Return the rows of pairs with as many rows each, shape (pair, row)."""
    return starts[:, None] + np.arange(length)


def _block(
    columns: dict[str, np.ndarray], scores: np.ndarray, components: Sequence[str]
) -> tuple[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]], dict[str, bool]]:
    """Arrange rows of pairs that have equally many, shape (pair, row): positions, roles, scores; and who has heads."""
    elements = [columns[key] for key in ("component", "layer", "head")]
    if any((values != values[0]).any() for values in elements):
        raise _UnevenError
    component, layer, head = (values[0] for values in elements)
    changes = np.flatnonzero(np.diff(component) | np.diff(layer) | np.diff(head)) + 1
    n_elements = len(changes) + 1
    n_pairs, n_rows = scores.shape
    n_places, rest = divmod(n_rows, n_elements)
    if rest or not np.array_equal(changes, np.arange(1, n_elements) * n_places):
        raise _UnevenError
    shape = (n_pairs, n_elements, n_places)
    positions, roles = (columns[key].reshape(shape) for key in ("position", "role"))
    if (positions != positions[:, :1]).any() or (roles != roles[:, :1]).any():
        raise _UnevenError
    if n_places > 1 and (np.diff(positions[:, 0]) <= 0).any():
        raise _UnevenError
    by_element = scores.reshape(shape)
    given, heads = {}, {}
    for code, first, stop in _component_spans(component[::n_places]):
        name = components[code]
        if name in given:
            raise _UnevenError
        layers, in_layer = layer[::n_places][first:stop], head[::n_places][first:stop]
        n_layers = int(layers[-1]) + 1
        n_heads = (stop - first) // n_layers
        heads[name] = bool(in_layer[0] >= 0)
        grid_layer, grid_head = np.indices((n_layers, n_heads)).reshape(2, -1)
        if not np.array_equal(layers, grid_layer) or not np.array_equal(
            in_layer, grid_head if heads[name] else np.full_like(in_layer, -1)
        ):
            raise _UnevenError
        given[name] = by_element[:, first:stop].reshape(n_pairs, n_layers, n_heads, n_places)
    return (positions[:, 0], roles[:, 0], given), heads


def _component_spans(component: np.ndarray) -> Iterator[tuple[int, int, int]]:
    edges = np.flatnonzero(np.diff(component)) + 1
    for first, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(component)], strict=True):
        yield int(component[first]), first, stop


def _check_positions(chunk: DenseChunk, at: str | Sequence[str]) -> None:
    """Check that every pair has rows where it must, and nowhere else."""
    n_tokens = chunk.facts.n_tokens
    if at in (ALL, LAST):
        if sum(len(block.pairs) for block in chunk.blocks) != len(n_tokens):
            raise _UnevenError
        for block in chunk.blocks:
            n = n_tokens[block.pairs]
            n_places = block.positions.shape[1]
            wrong = block.positions[:, -1] != n - 1
            wrong |= (n_places != n) if at == ALL else (n_places != 1)
            if wrong.any():
                raise _UnevenError
        return
    asked = {code for code, role in enumerate(chunk.roles) if role in at}
    if any(not np.isin(block.roles, list(asked)).all() for block in chunk.blocks):
        raise _UnevenError


def _expected(facts: PairFacts, at: str | Sequence[str]) -> str:
    n_pairs = len(facts.pair_id)
    if at == ALL:
        return f"one row per token position of each of its {n_pairs} pairs, {int(facts.n_tokens.sum())} rows"
    if at == LAST:
        return f"one row for each of its {n_pairs} pairs, at the last position"
    return f"the same rows of a pair, at positions of {' and '.join(at)} alone"
