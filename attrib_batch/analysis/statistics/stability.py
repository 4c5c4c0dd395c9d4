"""How many pairs are enough: rank agreement of the strongest heads between disjoint random sets of chunks.

For each of a few sizes, two sets of so many chunks are drawn without a chunk in common, many times. The mean score of
every head follows in each set from the moments of its chunks; compared are the ``top_k`` heads by magnitude and the
ranks of all. The largest size is half of all chunks (split-half agreement). Chunks are what is drawn, so a run of one
chunk says nothing, and a table that is sorted by something that matters looks less stable than it is. Two halves agree
less with each other than either does with all pairs, so the figures err on the side of caution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from attrib_batch.analysis.statistics.resampling import LEVEL
from attrib_batch.analysis.summary import STABILITY
from attrib_batch.analysis.tables import CELL
from attrib_batch.tables.moments import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MOST_BLOCKS = 256
"""Chunks of longer runs are put together into so many blocks, which bounds memory."""

_SCOPES = (Scope.LAST, Scope.ALL)
_MAP = ("component", "scope")
_HEAD = ("layer", "head")
_TOP_K = (5, 10, 20)
_SPLITS = 100
_SEED = 0

_SCHEMA = pl.Schema({name: dtype for name, dtype in STABILITY.items() if name not in CELL})


def block_sums(moments: pl.DataFrame, block: int) -> pl.DataFrame:
    """Keep what stability needs of a chunk's moments.

    Args:
        moments: of the schema `attrib_batch.tables.MOMENTS`.
        block: the number of the block that the chunk belongs to.

    Returns:
        component, scope (last or all), layer, head, ``block``, ``n`` and ``s``, the sum of the values.
    """
    return moments.filter(pl.col("scope").is_in(list(map(str, _SCOPES)))).select(
        *_MAP, *_HEAD, pl.lit(block, pl.Int64).alias("block"), "n", s=pl.col("n") * pl.col("mean")
    )


def merge_blocks(pieces: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add up the sums of chunks that belong to one block; frames as from `block_sums`."""
    keys = (*_MAP, *_HEAD, "block")
    return pl.concat(pieces).group_by(keys).agg(pl.col("n").sum(), pl.col("s").sum())


def stability(blocks: pl.DataFrame) -> pl.DataFrame:
    """Compute the rank agreement of one cell.

    Args:
        blocks: as from `merge_blocks`.

    Returns:
        ``component, scope, n_pairs`` (pairs of each of the two sets, on average), ``top_k`` (5, 10 and 20, those that
        are at most half of the heads), ``overlap`` (share of the top k of one set that are in the top k of the other, 0
        to 1, mean over splits), ``overlap_low, overlap_high`` (95 % of the splits lie between), ``spearman`` (rank
        correlation of the mean scores of all heads, mean over splits; null where a mean does not vary). No rows for
        fewer than two blocks. The same blocks give the same numbers.
    """
    frames = [pl.DataFrame(schema=_SCHEMA)]
    for (component, scope), rows in sorted(blocks.partition_by(_MAP, as_dict=True).items()):
        found = [(component, scope, *figures) for figures in _of_map(rows)]
        frames.append(pl.DataFrame(found, schema=_SCHEMA, orient="row"))
    return pl.concat(frames)


def _of_map(rows: pl.DataFrame) -> Iterator[tuple[int, int, float, float, float, float | None]]:
    """Yield the statistics of one component and scope, from ``n_pairs`` on, from its sums by block."""
    head = pl.struct(pl.col("layer"), pl.col("head").fill_null(-1))
    heads, block = rows.select(head=head.rank("dense") - 1, block=pl.col("block").rank("dense") - 1).to_numpy().T
    n_blocks, n_heads = int(block.max()) + 1, int(heads.max()) + 1
    n, s = np.zeros((2, n_blocks, n_heads))
    n[block, heads] = rows.get_column("n").to_numpy()
    s[block, heads] = rows.get_column("s").to_numpy()
    sizes = [k for k in _TOP_K if 2 * k <= n_heads] or [max(1, n_heads // 2)]
    pairs_of_block = n.mean(axis=1)
    rng = np.random.default_rng(_SEED)
    for size in _set_sizes(n_blocks) if n_heads > 1 else ():
        order = rng.permuted(np.tile(np.arange(n_blocks), (_SPLITS, 1)), axis=1)
        one, two = (_means(n, s, order[:, first : first + size]) for first in (0, size))
        n_pairs = round(float(pairs_of_block[order[:, : 2 * size]].sum(axis=1).mean()) / 2)
        place_one, place_two = _places(one), _places(two)
        spearman = rank_correlation(one, two)
        known = spearman[~np.isnan(spearman)]
        for k in sizes:
            shared = np.count_nonzero((place_one < k) & (place_two < k), axis=1) / k
            low, high = np.quantile(shared, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            mean = float(known.mean()) if len(known) else None
            yield n_pairs, k, float(shared.mean()), float(low), float(high), mean


def _set_sizes(n_blocks: int) -> list[int]:
    """Return how many blocks each set has: powers of two, and half of all."""
    half = n_blocks // 2
    return [*(2**power for power in range(half.bit_length()) if 2**power < half), half] if half else []


def _means(n: np.ndarray, s: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Compute the mean of every head in each set of blocks, (split, head), as `merge_moments` would one by one."""
    member = np.zeros((len(sets), len(n)))
    np.put_along_axis(member, sets, 1.0, axis=1)
    pairs = member @ n
    # A method that scores few positions may have no pair in a block.
    means: np.ndarray = np.divide(member @ s, pairs, out=np.zeros_like(pairs), where=pairs > 0)
    return means


def _places(means: np.ndarray) -> np.ndarray:
    """Give each head of a row its place by magnitude, 0 for the largest; (split, head)."""
    order = np.argsort(-np.abs(means), axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(means.shape[1])[None, :], axis=1)
    return places


def rank_correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation of each row of two arrays (split, head); NaN where a row does not vary."""
    ranks = [_ranks(values) for values in (one, two)]
    x, y = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore"):
        correlation: np.ndarray = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return correlation


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank each row; ties share the mean of their ranks."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    place = np.broadcast_to(np.arange(values.shape[1], dtype=np.float64), values.shape)
    starts = np.ones(values.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.ones(values.shape, dtype=bool)
    ends[:, :-1] = starts[:, 1:]
    first = np.maximum.accumulate(np.where(starts, place, -np.inf), axis=1)
    last = np.minimum.accumulate(np.where(ends, place, np.inf)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=1)
    return ranks


def stability_sentence(row: Mapping[str, object], things: str = "heads") -> str:
    """Say what a row of ``stability.parquet`` means, for the largest number of pairs usually.

    Args:
        row: ``n_pairs, top_k, overlap``.
        things: what is ranked: heads, or layers for a component without heads.
    """
    k = int(str(row["top_k"]))
    shared = float(str(row["overlap"])) * k
    return f"With {row['n_pairs']:,} pairs in each, the top {k} {things} of two halves share {shared:.1f} of {k}."
