"""Which pairs make a head's mean: the strongest and the weakest, with their tokens and the score of each.

Few scores are read for it. Order pairs by value, and pairs of the same value by their ids. A pair among the first n is
in one of the n chunks whose own first pairs come first: behind any other chunk's first pair there are n pairs already.
The first pair of each chunk is in its moments (``max`` and ``max_pair``; ``min`` and ``min_pair`` for the weakest), so
chunks are opened in that order, and no more of them once n pairs come before the first pair of the next. Chunks
without moments are all opened.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from attrib_batch.analysis.places import first_place, is_at, scope_of, select_cells
from attrib_batch.analysis.prompts import read_prompts
from attrib_batch.analysis.statistics.dense import read_dense
from attrib_batch.analysis.statistics.moments import HEAD_SCOPES
from attrib_batch.analysis.summary import read_summary
from attrib_batch.analysis.tables import CELL, committed_parts, read_manifest, scan
from attrib_batch.spec import Component
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table
from attrib_batch.tables.dense import pair_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from attrib_batch.analysis.tables import Part
    from attrib_batch.spec import Cell
    from attrib_batch.tables import Manifest
    from attrib_batch.tables.dense import DenseChunk

STRONGEST, WEAKEST = "strongest", "weakest"
_SIGNS = {STRONGEST: 1.0, WEAKEST: -1.0}

EXAMPLES = pl.Schema(
    {
        "model": pl.String(),
        "dataset": pl.String(),
        "method": pl.String(),
        "component": pl.String(),
        "layer": pl.Int16(),
        "head": pl.Int16(),  # null for components without heads
        "at": pl.String(),  # last, all, or a role: where the value is taken
        "which": pl.String(),  # strongest: the largest values; weakest: the smallest, negative ones first
        "rank": pl.Int64(),  # 1 for the largest value of the strongest, and for the smallest of the weakest
        "pair_id": pl.Int64(),
        "value": pl.Float64(),  # metric units
        "clean_metric": pl.Float64(),
        "corrupted_metric": pl.Float64(),
        "template": pl.String(),
        "task": pl.String(),  # null where the run has no table of prompts; likewise the tokens
        "tokens": pl.List(pl.String()),  # of the clean prompt
        "corrupted_tokens": pl.List(pl.String()),
        "scores": pl.List(pl.Float64()),  # one per token, metric units; null at positions without a row
    }
)
"""The columns of `examples`."""


class Key(NamedTuple):
    """What examples are of."""

    component: str
    layer: int
    head: int | None
    at: str

    def __str__(self) -> str:
        return f"{self.component}, L{self.layer}{'' if self.head is None else f'H{self.head}'}, at={self.at!r}"


class _Order(NamedTuple):
    """By which pairs are sorted; smaller comes first."""

    value: float
    """Minus the value for the strongest."""
    pair_id: int


@dataclass(frozen=True, order=True)
class _Found:
    order: _Order
    part: int = field(compare=False)
    scores: np.ndarray = field(compare=False)
    """(token,); NaN at positions without a row."""


@dataclass
class _Search:
    """The search for the first n pairs of a key from one end."""

    key: Key
    which: str
    n: int
    queue: list[tuple[_Order, int]]
    """The first pair of each part and the part, the first of all at the end."""
    found: list[_Found] = field(default_factory=list)

    def next_part(self, read: set[int]) -> int | None:
        """Return the part that may hold one of the first pairs; None where no other does."""
        while self.queue and self.queue[-1][1] in read:
            self.queue.pop()
        if not self.queue or (len(self.found) == self.n and self.found[-1].order < self.queue[-1][0]):
            return None
        return self.queue[-1][1]

    def add(self, chunk: DenseChunk, part: int, pairs: np.ndarray, values: np.ndarray) -> None:
        """Add the first pairs of a part: indices ``pairs`` into the chunk's facts, and their values."""
        ids = chunk.facts.pair_id[pairs]
        for index in np.lexsort([ids, -_SIGNS[self.which] * values])[: self.n].tolist():
            order = _Order(-_SIGNS[self.which] * float(values[index]), int(ids[index]))
            if len(self.found) < self.n or order < self.found[-1].order:
                insort(self.found, _Found(order, part, _token_scores(chunk, self.key, int(pairs[index]))))
                del self.found[self.n :]


def examples(
    out: str | Path | Store,
    *,
    component: str = Component.Z,
    layer: int,
    head: int | None = None,
    at: str = "all",
    n: int = 5,
    **cell: str,
) -> pl.DataFrame:
    """Find the pairs with the largest and with the smallest values of a head.

    Args:
        out: the run's directory.
        component: the component.
        layer: the layer, from 0.
        head: the head, from 0; None for a component without heads.
        at: ``all`` for the sum over positions, ``last`` for the last position, or a role.
        n: how many from each end, for each cell; no pair is shown twice.
        **cell: only this ``model``, ``dataset`` or ``method``.

    Returns:
        The columns of `EXAMPLES`, in the order of the plan, ``which`` and ``rank``.

    Raises:
        ValueError: there is no such cell, component, layer, head or role.
        OutputError: ``out`` is not a run's directory, or a part is damaged.
    """
    if n < 1:
        raise ValueError(f"n={n}: ask for at least one pair")
    store = Store.parse(out)
    manifest = read_manifest(store)
    key = Key(str(component), layer, head, at)
    cells = select_cells(manifest, cell)
    frames = [_of_cell(store, manifest, one, [key], n) for one in cells]
    if all(frame.is_empty() for frame in frames):
        raise ValueError(f"there is no score of {key}; {_what_there_is(store, manifest, cells)}")
    return pl.concat(frames)


def examples_of_top(out: str | Path | Store, n_heads: int = 5, n: int = 3) -> pl.DataFrame:
    """Find such pairs of the strongest heads of each cell and component; every chunk is opened at most once.

    Heads are ranked by the absolute mean at the role ``end``, without it at the last position, or else over all
    positions that have scores; their values are those of the same place. The run must have a summary.

    Args:
        out: the run's directory.
        n_heads: how many heads of each component of each cell.
        n: how many pairs from each end.

    Returns:
        The columns of `EXAMPLES`, the strongest head first.

    Raises:
        OutputError: the run has not been summarised, or a part is damaged.
    """
    store = Store.parse(out)
    manifest, heads = read_manifest(store), read_summary(store).heads
    frames = [EXAMPLES.to_frame()]
    for plan in manifest.plan:
        cell = plan.cell
        rows = heads.filter(*(pl.col(name) == getattr(cell, name) for name in CELL))
        keys = []
        for (component,), of_one in rows.partition_by("component", as_dict=True, maintain_order=True).items():
            at = first_place(of_one)
            ranked = of_one.filter(is_at(at)).sort(
                pl.col("mean").abs(), "layer", "head", descending=[True, False, False]
            )
            keys += [
                Key(component, layer, head, at)
                for layer, head in ranked.head(n_heads).select("layer", "head").iter_rows()
            ]
        frames.append(_of_cell(store, manifest, cell, keys, n))
    return pl.concat(frames)


def _of_cell(store: Store, manifest: Manifest, cell: Cell, keys: Sequence[Key], n: int) -> pl.DataFrame:
    """Find the examples of some keys of one cell."""
    parts = committed_parts(store, cell)
    searches = _searches(parts, keys, n)
    at, read = manifest.positions_of(cell.method), set[int]()
    while wanted := {part for search in searches if (part := search.next_part(read)) is not None}:
        for part in sorted(wanted):
            _look_through(read_dense(cell, parts[part], at), part, searches)
        read |= wanted
    return _table(cell, parts, searches)


def _searches(parts: Sequence[Part], keys: Sequence[Key], n: int) -> list[_Search]:
    """Begin a search from both ends of each key."""
    unknown = [(_Order(-inf, -1), index) for index, part in enumerate(parts) if part.moments is None]
    first = _first_pairs(parts, keys)
    searches = []
    for key in keys:
        for which, sign in _SIGNS.items():
            value, pair = ("max", "max_pair") if which == STRONGEST else ("min", "min_pair")
            rows = first.get(key)
            known = () if rows is None else rows.select(value, pair, "part").iter_rows()
            queue = [(_Order(-sign * bound, pair_id), part) for bound, pair_id, part in known]
            searches.append(_Search(key, which, n, sorted([*queue, *unknown], reverse=True)))
    return searches


def _first_pairs(parts: Sequence[Part], keys: Sequence[Key]) -> dict[Key, pl.DataFrame]:
    """Read the smallest and the largest value of each key and part, and whose they are: one row for each part."""
    columns = ("min", "max", "min_pair", "max_pair")
    names = [pl.col(name).cast(pl.String) for name in ("component", "scope", "role")]
    wanted = pl.DataFrame(
        [(key.component, *map(_text, scope_of(key.at)), key.layer, key.head, index) for index, key in enumerate(keys)],
        schema={
            "component": pl.String, "scope": pl.String, "role": pl.String, "layer": pl.Int16, "head": pl.Int16,
            "key": pl.Int64,
        },
        orient="row",
    )  # fmt: skip
    on = [name for name in wanted.columns if name != "key"]
    frames = [
        scan([part.moments], Table.MOMENTS)
        .select(*names, "layer", "head", *columns, part=pl.lit(index, pl.Int64))
        .filter(pl.col("layer").is_in(list({key.layer for key in keys})))
        for index, part in enumerate(parts)
        if part.moments is not None
    ]
    if not frames or not keys:
        return {}
    rows = pl.concat(frames).join(wanted.lazy(), on=on, nulls_equal=True).collect(engine="streaming")
    groups = rows.partition_by("key", as_dict=True, include_key=False)
    return {keys[index]: frame for (index,), frame in groups.items()}


def _text(value: str | None) -> str | None:
    return None if value is None else str(value)


def _look_through(chunk: DenseChunk, part: int, searches: Sequence[_Search]) -> None:
    """Add the pairs of a chunk to every search."""
    for component in {search.key.component for search in searches} & set(chunk.heads):
        alone = replace(chunk, heads={component: chunk.heads[component]})
        for found in pair_values(alone):
            if found.scope not in HEAD_SCOPES:
                break  # those by position come behind
            for search in searches:
                key = search.key
                head = -1 if key.head is None else key.head
                if key.component != component or scope_of(key.at) != (found.scope, found.role):
                    continue
                at = np.flatnonzero((found.layer == key.layer) & (found.head == head))
                if len(at):
                    [column] = at
                    search.add(chunk, part, found.pairs, found.values[:, column])


def _token_scores(chunk: DenseChunk, key: Key, pair: int) -> np.ndarray:
    """Return the score of each token of a pair, shape (token,); NaN where there is none."""
    tokens = np.full(int(chunk.facts.n_tokens[pair]), np.nan)
    for block in chunk.blocks:
        for row in np.flatnonzero(block.pairs == pair).tolist():
            there = block.positions[row] >= 0
            tokens[block.positions[row][there]] = block.scores[key.component][row, key.layer, key.head or 0][there]
    return tokens


def _table(cell: Cell, parts: Sequence[Part], searches: Sequence[_Search]) -> pl.DataFrame:
    """Bring what was found into the columns of `EXAMPLES`."""
    rows, shown = [], dict[Key, set[int]]()
    for search in searches:
        before = shown.setdefault(search.key, set())
        fresh = [found for found in search.found if found.order.pair_id not in before]
        before |= {found.order.pair_id for found in fresh}
        for rank, found in enumerate(fresh, start=1):
            rows.append(
                {
                    "model": cell.model, "dataset": cell.dataset, "method": cell.method, **search.key._asdict(),
                    "which": search.which, "rank": rank, "pair_id": found.order.pair_id,
                    "value": -_SIGNS[search.which] * found.order.value + 0.0,
                    "scores": [None if np.isnan(score) else score for score in found.scores.tolist()],
                }
            )  # fmt: skip
    given = {name: kind for name, kind in EXAMPLES.items() if name in (rows[0] if rows else ())}
    if not rows:
        return EXAMPLES.to_frame()
    used = sorted({found.part for search in searches for found in search.found})
    ids = {row["pair_id"] for row in rows}
    facts = _facts([parts[index] for index in used], ids)
    prompts = read_prompts(cell, [parts[index] for index in used], ids)
    joined = pl.DataFrame(rows, schema=given).join(facts, on="pair_id", how="left", maintain_order="left")
    return joined.join(prompts, on="pair_id", how="left", maintain_order="left").select(EXAMPLES.names()).cast(EXAMPLES)


def _facts(parts: Iterable[Part], ids: Iterable[int]) -> pl.DataFrame:
    """Read the metrics and templates of pairs."""
    chosen = pl.col("pair_id").is_in(list(ids))
    columns = ("pair_id", "clean_metric", "corrupted_metric", "template")
    return scan([part.baselines for part in parts], Table.BASELINES).select(columns).filter(chosen).collect()


def _what_there_is(store: Store, manifest: Manifest, cells: Sequence[Cell]) -> str:
    """Say what examples can be asked for."""
    for cell in cells:
        for part in committed_parts(store, cell):
            chunk = read_dense(cell, part, manifest.positions_of(cell.method))
            if chunk.blocks:
                shapes = {name: values.shape[1:3] for name, values in chunk.blocks[0].scores.items()}
                sizes = "; ".join(
                    f"{name}: {layers} layers" + (f" of {heads} heads" if chunk.heads[name] else ", head=None")
                    for name, (layers, heads) in shapes.items()
                )
                return f"there is {sizes}; at=last, all" + "".join(f", {role}" for role in chunk.roles)
    return "nothing is scored yet"
