"""A run's directory written without a model: tests decide every number in it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attrib_batch.analysis.statistics.dense import read_dense
from attrib_batch.analysis.tables import Part
from attrib_batch.spec import Cell
from attrib_batch.spec.positions import ALL
from attrib_batch.storage.store import Store
from attrib_batch.tables import SCHEMA_VERSION, Chunk, Table
from attrib_batch.tables.shortening import shortened
from attrib_batch.tables.sums import chunk_moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """One scored pair. Scores have the shape (layer, head, position), or (layer, position) without heads."""

    pair_id: int
    scores: Mapping[str, np.ndarray]
    roles: Mapping[int, str] = field(default_factory=dict)
    clean: float = 3.0
    corrupted: float = -1.0
    group: int | None = None
    template: str | None = None
    first_difference: int = 0
    stored: Sequence[int] | None = None
    """The positions that have rows; all where None."""

    @property
    def n_tokens(self) -> int:
        return int(next(iter(self.scores.values())).shape[-1])


@dataclass(frozen=True)
class Failure:
    pair_id: int
    stage: str = "validate"
    error: str = "unequal_length"
    message: str = "clean has 14 tokens, corrupted has 15"


def score_table(pairs: Sequence[Pair]) -> pa.Table:
    """The scores of some pairs in long format, pair-major."""
    pieces = [_rows(pair, component, scores) for pair in pairs for component, scores in pair.scores.items()]
    if not pieces:
        return Table.SCORES.schema.empty_table()
    return pa.concat_tables(pieces).unify_dictionaries().combine_chunks()


def _rows(pair: Pair, component: str, scores: np.ndarray) -> pa.Table:
    *outer, n_tokens = scores.shape
    axes = np.indices(scores.shape).reshape(scores.ndim, -1)
    roles = [pair.roles.get(position) for position in range(n_tokens)]
    n = scores.size
    columns = {
        "pair_id": np.full(n, pair.pair_id),
        "component": pa.array([component] * n).dictionary_encode(),
        "layer": axes[0].astype(np.int16),
        "head": pa.array(axes[1].astype(np.int16)) if len(outer) == 2 else pa.nulls(n, pa.int16()),
        "position": axes[-1].astype(np.int32),
        "role": pa.array(roles * (n // n_tokens), pa.string()).dictionary_encode(),
        "score": scores.reshape(-1).astype(np.float32),
    }
    table = pa.table(columns).cast(Table.SCORES.schema)
    return (
        table if pair.stored is None else table.filter(pc.is_in(table["position"], pa.array(pair.stored, pa.int32())))
    )


def baseline_table(pairs: Sequence[Pair]) -> pa.Table:
    rows = [
        {
            "pair_id": pair.pair_id,
            "n_tokens": pair.n_tokens,
            "first_difference": pair.first_difference,
            "clean_metric": pair.clean,
            "corrupted_metric": pair.corrupted,
            "template": pair.template,
            "group": pair.group,
        }
        for pair in pairs
    ]
    return pa.Table.from_pylist(rows, schema=Table.BASELINES.schema)


PROMPTS = pa.schema(
    [
        pa.field("pair_id", pa.int64(), nullable=False),
        pa.field("clean_tokens", pa.list_(pa.string())),
        pa.field("corrupted_tokens", pa.list_(pa.string())),
        pa.field("task", pa.string()),
    ]
)


def write_prompts(out: Path, chunk: Chunk, pairs: Sequence[Pair], task: str | None = None) -> None:
    """Write a chunk's prompts, whose tokens say which pair and position they are of."""
    rows = [
        {
            "pair_id": pair.pair_id,
            "clean_tokens": [f" clean{pair.pair_id}.{position}" for position in range(pair.n_tokens)],
            "corrupted_tokens": [f" corrupted{pair.pair_id}.{position}" for position in range(pair.n_tokens)],
            "task": task,
        }
        for pair in pairs
    ]
    path = chunk.path(Table.SCORES).replace(str(Table.SCORES), "prompts", 1)
    Store(out).write_table(path, pa.Table.from_pylist(rows, schema=PROMPTS))


def failure_table(failures: Sequence[Failure]) -> pa.Table:
    rows = [{**vars(failure), "attempts": 1} for failure in failures]
    return pa.Table.from_pylist(rows, schema=Table.FAILURES.schema)


def write_chunk(
    out: Path, chunk: Chunk, pairs: Sequence[Pair], failures: Sequence[Failure] = (), *, at: Any = None
) -> None:
    """Write a chunk; with its moments where the positions are said that its method was asked for."""
    store = Store(out)
    if failures:
        store.write_table(chunk.path(Table.FAILURES), failure_table(failures))
    store.write_table(chunk.path(Table.BASELINES), baseline_table(pairs))
    store.write_table(chunk.path(Table.SCORES), score_table(pairs))
    if at is not None:
        files = (store.file(chunk.path(table)) for table in (Table.SCORES, Table.BASELINES))
        moments, strata = map(shortened, chunk_moments(read_dense(chunk.cell, Part(*files), at)))
        store.write_table(chunk.path(Table.MOMENTS), moments)
        store.write_table(chunk.path(Table.STRATA), strata)


def write_manifest(out: Path, expected: Mapping[Cell, int], *, method: Mapping[str, object] | None = None) -> None:
    """A manifest for the cells, each with the number of pairs the plan holds."""
    models, datasets, methods = ({getattr(cell, key) for cell in expected} for key in ("model", "dataset", "method"))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "run_id": "20261123-abcdef",
        "created_at": "2026-11-23T10:30:00+00:00",
        "job": {
            "name": "synthetic",
            "models": [
                {"id": f"org/{name}", "name": name, "dtype": "float32", "prepend_bos": False} for name in sorted(models)
            ],
            "datasets": [{"id": name, "path": f"datasets/{name}.parquet", "limit": None} for name in sorted(datasets)],
            "methods": [
                {
                    "id": name,
                    "kind": "atp",
                    "components": ["z"],
                    "metric": "logit_diff",
                    "direction": "denoise",
                    **(method or {}),
                }
                for name in sorted(methods)
            ],
            "chunk_pairs": 64,
        },
        "fingerprint": {
            "spec": "5f" * 32,
            "datasets": dict.fromkeys(sorted(datasets), "ab" * 32),
            "models": dict.fromkeys(sorted(models), "cd" * 32),
        },
        "versions": {"attrib_batch": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "plan": [
            {
                "model": cell.model,
                "dataset": cell.dataset,
                "method": cell.method,
                "n_pairs": n_pairs,
                "n_chunks": -(-n_pairs // 64),
                "chunk_pairs": 64,
                "dataset_rows": n_pairs,
            }
            for cell, n_pairs in expected.items()
        ],
        "a_key_of_a_later_release": {"nested": True},
    }
    Store(out).write_bytes("manifest.json", json.dumps(manifest).encode())


def write_run(
    out: Path,
    cells: Mapping[Cell, Sequence[Pair]],
    *,
    cuts: Sequence[int] = (),
    failures: Mapping[Cell, Sequence[Failure]] | None = None,
    method: Mapping[str, object] | None = None,
    moments: bool = False,
) -> Path:
    """A finished run; pairs are cut into parts before the given indices; failures go into the first."""
    failed = failures or {}
    components = list(dict.fromkeys(name for pairs in cells.values() for pair in pairs for name in pair.scores))
    write_manifest(
        out,
        {cell: len(pairs) + len(failed.get(cell, ())) for cell, pairs in cells.items()},
        method={"components": components or ["z"], **(method or {})},
    )
    for cell, pairs in cells.items():
        edges = sorted({0, len(pairs), *(cut for cut in cuts if 0 < cut < len(pairs))})
        for start, stop in itertools.pairwise(edges):
            write_chunk(
                out, Chunk(cell, start, stop), pairs[start:stop], failed.get(cell, ()) if start == 0 else (),
                at=(method or {}).get("at", ALL) if moments else None,
            )  # fmt: skip
    return out


_AT_END = [(9, 9, 1.9), (9, 6, 1.5), (10, 0, 1.1), (10, 7, -1.6), (11, 10, -1.4), (8, 6, 0.9), (7, 9, 0.7)]
_AT_S2 = [(5, 5, 0.8), (6, 9, 0.6), (3, 0, 0.5), (0, 1, 0.3)]


@dataclass(frozen=True)
class IoiLike:
    """Pairs like indirect object identification in GPT-2 small: known heads matter at `end`."""

    layers: int = 12
    heads: int = 12
    without_heads: bool = False
    seed: int = 0

    def pairs(self, count: int) -> list[Pair]:
        rng = np.random.default_rng(self.seed)
        return [pair for index in range((count + 1) // 2) for pair in self._mirrored(index, rng)][:count]

    def _mirrored(self, index: int, rng: np.random.Generator) -> list[Pair]:
        n_tokens = 14 + index % 3
        roles = {2: "IO", 4: "S1", 9: "S2", n_tokens - 1: "end"}
        base = rng.normal(0, 0.5)
        return [
            Pair(
                pair_id=2 * index + mirror,
                scores=self._scores(n_tokens, rng),
                roles=roles,
                clean=3 + base + rng.normal(0, 0.2),
                corrupted=-3 + base + rng.normal(0, 0.2),
                group=index,
            )
            for mirror in range(2)
        ]

    def _scores(self, n_tokens: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        z = rng.normal(0, 0.03, (self.layers, self.heads, n_tokens))
        z[..., :9] = 0  # before the first difference
        for layer, head, effect in _AT_END:
            z[layer % self.layers, head % self.heads, -1] += effect * rng.normal(1, 0.4)
        for layer, head, effect in _AT_S2:
            z[layer % self.layers, head % self.heads, 9] += effect * rng.normal(1, 0.4)
        if not self.without_heads:
            return {"z": z}
        mlp = rng.normal(0, 0.02, (self.layers, n_tokens))
        mlp[0, 9] += 0.6
        mlp[-1, -1] += 0.4
        return {"z": z, "mlp_out": mlp}
