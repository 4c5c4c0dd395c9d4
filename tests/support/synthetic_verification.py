"""Exact scores beside a synthetic run, as verification writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from attrib_batch.analysis.verification.verified import VERIFICATION
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table
from tests.support.synthetic_run import IoiLike, Pair, score_table, write_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def write_exact(out: Path, cell: Cell, pairs: Sequence[Pair], *, start: int = 0) -> None:
    """A part of the exact scores of a cell."""
    chunk = Chunk(cell, start, start + len(pairs))
    Store(out / VERIFICATION).write_table(chunk.path(Table.SCORES), score_table(pairs))


def estimated_from(pairs: Sequence[Pair], *, noise: float = 0.02, bias: float = 0.0, seed: int = 1) -> list[Pair]:
    """Estimates of exact scores: some noise everywhere, 0 where they are 0, one head that misleads by ``bias``."""
    rng = np.random.default_rng(seed)

    def estimate(scores: np.ndarray) -> np.ndarray:
        near = scores + (scores != 0) * rng.normal(0, noise, scores.shape)
        if scores.ndim == 3:
            near[-1, 0, -1] += bias
        return near

    return [replace(pair, scores={name: estimate(scores) for name, scores in pair.scores.items()}) for pair in pairs]


def write_verified_run(
    out: Path,
    methods: Mapping[Cell, Mapping[str, float]],
    *,
    pairs: Sequence[Pair] | None = None,
    method: Mapping[str, object] | None = None,
) -> Path:
    """A run whose cells estimate the same exact scores with the given `estimated_from` arguments, all verified."""
    pairs = pairs or IoiLike(without_heads=True).pairs(24)
    write_run(out, {cell: estimated_from(pairs, **error) for cell, error in methods.items()}, cuts=(9,), method=method)
    for cell in methods:
        write_exact(out, cell, pairs[::2])
        write_exact(out, cell, pairs[1::2], start=len(pairs))
    return out
