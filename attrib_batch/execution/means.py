"""Mean activations as tables: those of a chunk, those of all chunks joined, and what a worker makes of them.

A chunk's part has the means over its tokens and how many these are, so parts add up. They are joined in the order of
the chunks into OUT/reference/joined once the stage is committed, and read from there.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from attrib_batch.spec import Cell, Component
from attrib_batch.tables import MEANS, Chunk, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from attrib_batch.attribution.references import Means
    from attrib_batch.attribution.scores import ActivationSums
    from attrib_batch.storage.store import Store

Key = tuple[str, int, int | None, str | None]
"""Component, layer, head and role."""
_ENTERING = (str(Component.RESID_PRE), 0, None)
"""What the means of every component have beside it: what enters the first layer."""


def mean_name(component: Component) -> str:
    """Return the name that the means of a component have as a method's in the tables."""
    return f"mean-{component}"


def means_table(component: Component, parts: Iterable[ActivationSums]) -> pa.Table:
    """Build the table of a chunk from the sums of its micro-batches."""
    totals: dict[Key, tuple[int, np.ndarray]] = {}
    for part in parts:
        for index, (role, n_tokens) in enumerate(zip(part.roles, part.count.tolist(), strict=True)):
            if not n_tokens:
                continue
            _add(totals, (*_ENTERING, role), n_tokens, part.entering[index])
            # The first layer of what enters layers is what enters the model.
            first = int(component is Component.RESID_PRE)
            for layer, heads in enumerate(part.totals[first:, index], first):
                for head, total in enumerate(heads):
                    key = (str(component), layer, head if component.has_heads else None, role)
                    _add(totals, key, n_tokens, total)
    return _table({key: (n_tokens, total / n_tokens) for key, (n_tokens, total) in totals.items()})


def _add(totals: dict[Key, tuple[int, np.ndarray]], key: Key, n_tokens: int, total: np.ndarray) -> None:
    before, known = totals.get(key, (0, np.zeros(len(total))))
    totals[key] = (before + n_tokens, known + total)


def _table(means: Mapping[Key, tuple[int, np.ndarray]]) -> pa.Table:
    rows = sorted(means.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] or 0, item[0][3] or ""))
    names = ("component", "layer", "head", "role")
    columns = {name: [key[place] for key, _ in rows] for place, name in enumerate(names)}
    columns |= {"n_tokens": [n for _, (n, _) in rows], "mean": [mean.tolist() for _, (_, mean) in rows]}
    return pa.table([pa.array(columns[name], MEANS.field(name).type) for name in MEANS.names], schema=MEANS)


def join_means(store: Store, chunks: Iterable[Chunk]) -> None:
    """Write the means over all committed chunks of cells, one file each; ``store`` is the stage's.

    Raises:
        OutputError: the store cannot be read or written.
    """
    of_cell: dict[Cell, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        of_cell[chunk.cell].append(chunk)
    for cell, parts in of_cell.items():
        totals: dict[Key, tuple[int, np.ndarray]] = {}
        for chunk in sorted(parts):
            # A chunk of which no pair could be read has none.
            if store.exists(chunk.path(Table.MEANS)):
                for key, n_tokens, mean in _rows(store.read_table(chunk.path(Table.MEANS))):
                    _add(totals, key, n_tokens, mean * n_tokens)
        joined = _table({key: (n_tokens, total / n_tokens) for key, (n_tokens, total) in totals.items()})
        store.write_table(_joined(cell), joined)


def load_means(store: Store, model: str, dataset: str, components: Sequence[Component]) -> Means:
    """Return the means of components that a stage left; ``store`` is the stage's.

    Of the roles that all of them have: pairs of which one was added up and another was not may be gone by now.

    Raises:
        OutputError: the store cannot be read.
    """
    # It brings torch, which is a worker's to load.
    from attrib_batch.attribution.references import Means

    tables = [store.read_table(_joined(Cell(model, dataset, mean_name(component)))) for component in components]
    found = {key: mean for table in tables for key, _, mean in _rows(table)}
    # Whatever the component, its table has what enters the first layer: the last one is its own.
    n_layers = 1 + max((key[1] for key in found), default=-1)
    of_component = [
        {role for name, layer, _, role in found if (name, layer) == (component, n_layers - 1)}
        for component in components
    ]
    roles = tuple(sorted(set.intersection(*of_component), key=lambda role: (role is not None, role or "")))
    values = {}
    for component in components:
        mine = {key: mean for key, mean in found.items() if key[0] == component}
        n_heads = 1 + max((key[2] or 0 for key in mine), default=-1)
        values[component] = np.array(
            [
                [
                    [
                        mine[str(component), layer, head if component.has_heads else None, role]
                        for head in range(n_heads)
                    ]
                    for role in roles
                ]
                for layer in range(n_layers)
            ],
            dtype=np.float32,
        )
    return Means(roles, values, np.array([found[(*_ENTERING, role)] for role in roles], dtype=np.float32))


def _rows(table: pa.Table) -> Iterable[tuple[Key, int, np.ndarray]]:
    for row in table.to_pylist():
        key = (row["component"], row["layer"], row["head"], row["role"])
        yield key, row["n_tokens"], np.array(row["mean"])


def _joined(cell: Cell) -> str:
    return f"joined/{cell.partition}/means.parquet"
