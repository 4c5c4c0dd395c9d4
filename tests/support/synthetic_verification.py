"""Exact scores beside a synthetic run, as verification writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from attrib_batch.tables import MANIFEST, VERIFICATION, CellPlan, Chunk, StageEntry, Table, read_manifest
from attrib_batch.tables.manifest import Identities
from attrib_batch.tables.sampling import SEED, in_random_order, pairs_by_unit, sample_path
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


def write_sampled_run(
    out: Path,
    cells: Mapping[Cell, Sequence[Pair]],
    exact: Sequence[Pair],
    *,
    seed: int = 0,
    n_units: int = 12,
    at: str = "all",
    **options: Any,
) -> list[int]:
    """A run whose cells share one measurement of a sample, as `verify` draws and records it.

    Args:
        out: the run's directory.
        cells: the estimates of each cell, all of one dataset.
        exact: the exact scores of the same pairs.
        seed: of the sample.
        n_units: units that are drawn.
        at: the positions that are measured.
        **options: of `write_run`.

    Returns:
        The ids of the pairs that were drawn.
    """
    write_run(out, cells, **options)
    units = pairs_by_unit({pair.pair_id: pair.group for pair in exact})
    drawn = sorted(id_ for unit in in_random_order(units, seed)[:n_units] for id_ in units[unit])
    write_measurement(out, next(iter(cells)), [pair for pair in exact if pair.pair_id in drawn], seed=seed, at=at)
    return drawn


def write_measurement(
    out: Path, cell: Cell, drawn: Sequence[Pair], *, seed: int = 0, at: str = "all", failed: Sequence[int] = ()
) -> None:
    """The verification stage of a run: what was drawn, and its exact scores but for pairs that failed."""
    store, measured = Store(out), Cell(cell.model, cell.dataset, "exact")
    manifest = read_manifest(store)
    method = {**manifest.method(cell.method), "id": "exact", "kind": "exact", "at": at}
    stage = StageEntry(
        name=VERIFICATION,
        folder=VERIFICATION,
        cells=(CellPlan.of(measured, len(drawn), max(len(drawn), 1)),),
        identities=Identities(datasets={cell.dataset: {SEED: seed}}),
        job={"methods": [method]},
    )
    store.write_bytes(MANIFEST, manifest.with_stage(stage).to_bytes())
    store.write_table(sample_path(cell.dataset), pa.table({"pair_id": [pair.pair_id for pair in drawn]}))
    stored = [
        replace(pair, stored=[pair.n_tokens - 1] if at == "last" else pair.stored)
        for pair in drawn
        if pair.pair_id not in failed
    ]
    store.below(VERIFICATION).write_table(Chunk(measured, 0, len(drawn)).path(Table.SCORES), score_table(stored))
