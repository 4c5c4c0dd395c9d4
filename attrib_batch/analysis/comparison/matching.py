"""Which heads of two models are compared with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Values:
    """Values of the heads of one model, of pairs that have them."""

    layer: np.ndarray
    """(key,)."""
    head: np.ndarray
    """(key,); -1 where there is none."""
    pair_id: np.ndarray
    """(pair,), rising."""
    values: np.ndarray
    """(pair, key)."""


Columns = tuple[np.ndarray, np.ndarray]
"""Columns of one model's values, and those of the other's that belong to them; each of shape (key,)."""

Match = Callable[[Values, Values], Columns]


def means_of(rows: pl.DataFrame, column: str) -> Values:
    """Return one column of a summary as the values of a single pair."""
    head = rows.get_column("head").fill_null(-1).to_numpy()
    means = rows.get_column(column).cast(pl.Float64).to_numpy()
    return Values(rows.get_column("layer").to_numpy(), head, np.zeros(1), means[None])


def match_heads(model_a: str, model_b: str, a: Values, b: Values, *, relative_depth: bool) -> Columns:
    """Say which heads belong together: those of one layer and number.

    With ``relative_depth`` a layer of the first model goes with the layer of the second at the nearest relative depth
    (0 for the first layer, 1 for the last); heads that only one of them has are left out.

    Raises:
        ValueError: the models are of different depth, and ``relative_depth`` was not asked for.
    """
    depth_a, depth_b = int(a.layer.max()) + 1, int(b.layer.max()) + 1
    if depth_a != depth_b and not relative_depth:
        raise ValueError(
            f"{model_a} has {depth_a} layers and {model_b} has {depth_b}: their layers do not correspond; "
            "relative_depth=True compares layers at the nearest relative depth"
        )
    # Halves are rounded up, so that the result does not depend on whether a layer is even.
    nearest = np.floor(a.layer * ((depth_b - 1) / max(depth_a - 1, 1)) + 0.5).astype(int)
    there = {key: index for index, key in enumerate(zip(b.layer.tolist(), b.head.tolist(), strict=True))}
    found = [there.get(key, -1) for key in zip(nearest.tolist(), a.head.tolist(), strict=True)]
    columns = np.array(found, dtype=int)
    return np.flatnonzero(columns >= 0), columns[columns >= 0]
