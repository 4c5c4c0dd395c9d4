"""Build the rows of a chunk: whole columns at a time, no Python loop per row."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from attrib_batch.spec import Component
from attrib_batch.tables import BASELINES, FAILURES, SCORES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.attribution.engine import ScoredBatch
    from attrib_batch.pairs.encoding.encode import EncodedPair

_COMPONENT_NAMES = pa.array([str(component) for component in Component])
_COMPONENT_CODES = {component: code for code, component in enumerate(Component)}


def score_rows(batches: Sequence[ScoredBatch]) -> pa.Table:
    """The scores table of a chunk, in the order of the pairs' ids.

    Positions of the shared prefix are rows like any other; their score is exactly 0.
    """
    roles = sorted({role for batch in batches for pair in batch.pairs for role in pair.roles if role is not None})
    slices: list[tuple[int, pa.Table]] = []
    for batch in batches:
        table = _batch_rows(batch, roles)
        rows_per_pair = table.num_rows // len(batch.pairs)
        slices += [
            (pair.pair_id, table.slice(index * rows_per_pair, rows_per_pair)) for index, pair in enumerate(batch.pairs)
        ]
    slices.sort(key=lambda item: item[0])
    return pa.concat_tables([table for _, table in slices]) if slices else SCORES.empty_table()


def _batch_rows(batch: ScoredBatch, roles: list[str]) -> pa.Table:
    """The rows of pairs of one shape: pair, then component, layer, head, position."""
    n_pairs, n_tokens = len(batch.pairs), batch.pairs[0].n_tokens
    codes = {role: code for code, role in enumerate(roles)}
    role_at = np.array(
        [[-1 if role is None else codes[role] for role in pair.roles] for pair in batch.pairs], dtype=np.int32
    )
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("component", "layer", "head", "position", "role", "score")
    }
    for component, suffix in batch.result.scores.items():
        _, n_layers, n_heads, n_suffix = suffix.shape
        shape = (n_pairs, n_layers, n_heads, n_tokens)
        score = np.zeros(shape, dtype=np.float32)
        score[..., n_tokens - n_suffix :] = suffix
        layer, head, position = np.meshgrid(
            np.arange(n_layers, dtype=np.int16),
            np.arange(n_heads, dtype=np.int16) if component.has_heads else np.full(1, -1, dtype=np.int16),
            np.arange(n_tokens, dtype=np.int32),
            indexing="ij",
        )
        columns["component"].append(np.full(score[0].size, _COMPONENT_CODES[component], dtype=np.int32))
        columns["layer"].append(layer.ravel())
        columns["head"].append(head.ravel())
        columns["position"].append(position.ravel())
        columns["role"].append(np.broadcast_to(role_at[:, None, None, :], shape).reshape(n_pairs, -1))
        columns["score"].append(score.reshape(n_pairs, -1))
    one_pair = {name: np.concatenate(columns[name]) for name in ("component", "layer", "head", "position")}
    repeated = {name: np.tile(values, n_pairs) for name, values in one_pair.items()}
    role = np.concatenate(columns["role"], axis=1).ravel()
    ids = np.array([pair.pair_id for pair in batch.pairs], dtype=np.int64)
    return pa.Table.from_arrays(
        [
            pa.array(np.repeat(ids, one_pair["layer"].size)),
            pa.DictionaryArray.from_arrays(pa.array(repeated["component"]), _COMPONENT_NAMES),
            pa.array(repeated["layer"]),
            pa.array(repeated["head"], mask=repeated["head"] < 0),
            pa.array(repeated["position"]),
            pa.DictionaryArray.from_arrays(pa.array(role, mask=role < 0), pa.array(roles, pa.string())),
            pa.array(np.concatenate(columns["score"], axis=1).ravel()),
        ],
        schema=SCORES,
    )


def baseline_rows(batches: Sequence[ScoredBatch]) -> pa.Table:
    """The baselines table of a chunk, in the order of the pairs' ids."""
    rows = [
        _baseline(pair, clean, corrupted)
        for batch in batches
        for pair, clean, corrupted in zip(
            batch.pairs,
            batch.result.clean_metric.tolist(),
            batch.result.corrupted_metric.tolist(),
            strict=True,
        )
    ]
    rows.sort(key=itemgetter("pair_id"))
    return pa.Table.from_pylist(rows, schema=BASELINES)


def _baseline(pair: EncodedPair, clean: float, corrupted: float) -> dict[str, Any]:
    return {
        "pair_id": pair.pair_id,
        "n_tokens": pair.n_tokens,
        "first_difference": pair.first_difference,
        "clean_metric": clean,
        "corrupted_metric": corrupted,
        "template": pair.template,
        "group": pair.group,
    }


def failure_rows(failures: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The failures table of a chunk, in the order of the pairs' ids."""
    return pa.Table.from_pylist(sorted(failures, key=itemgetter("pair_id")), schema=FAILURES)
