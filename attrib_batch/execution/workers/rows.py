"""Build the rows of a chunk: whole columns at a time, no Python loop per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.tables import BASELINES, FAILURES, PROMPTS, SCORES
from attrib_batch.tables.moments import DenseChunk, DenseScores, PairFacts, chunk_moments, units_of

_COMPONENT_NAMES = pa.array([str(component) for component in Component])
_COMPONENT_CODES = {component: code for code, component in enumerate(Component)}


def score_rows(batches: Sequence[ScoredBatch]) -> pa.Table:
    """Build the scores table of a chunk, in the order of the pairs' ids.

    Positions of the shared prefix are rows like any other; their score is exactly 0. A position that was not asked for
    has no row, so a pair may have none at all.
    """
    roles = _roles_of(batches)
    slices: list[tuple[int, pa.Table]] = []
    for batch in batches:
        table, n_rows = _batch_rows(batch, roles)
        starts = np.cumsum([0, *n_rows[:-1]])
        slices += [
            (pair.pair_id, table.slice(start, length))
            for pair, start, length in zip(batch.pairs, starts.tolist(), n_rows.tolist(), strict=True)
        ]
    slices.sort(key=lambda item: item[0])
    return pa.concat_tables([table for _, table in slices]) if slices else SCORES.empty_table()


def moment_rows(batches: Sequence[ScoredBatch]) -> tuple[pa.Table, pa.Table]:
    """Build the moments and the strata of a chunk; see `attrib_batch.tables.moments`."""
    scored = sorted(
        (
            (pair, clean - corrupted)
            for batch in batches
            for pair, clean, corrupted in zip(
                batch.pairs, batch.result.clean_metric.tolist(), batch.result.corrupted_metric.tolist(), strict=True
            )
        ),
        key=lambda item: item[0].pair_id,
    )
    pairs = [pair for pair, _ in scored]
    ids = np.array([pair.pair_id for pair in pairs], dtype=np.int64)
    facts = PairFacts(
        pair_id=ids,
        n_tokens=np.array([pair.n_tokens for pair in pairs], dtype=np.int64),
        unit=units_of(ids, [pair.group for pair in pairs]),
        gap=np.array([gap for _, gap in scored], dtype=np.float64),
        template=[pair.template for pair in pairs],
        task=[pair.task for pair in pairs],
    )
    roles = _roles_of(batches)
    blocks = [_dense(batch, roles, ids) for batch in batches]
    components = list(batches[0].result.scores) if batches else []
    heads = {str(component): component.has_heads for component in components}
    return chunk_moments(DenseChunk(facts, blocks, roles, heads))


def _dense(batch: ScoredBatch, roles: list[str], ids: Int[np.ndarray, " chunk_pair"]) -> DenseScores:
    places = _places(batch)
    return DenseScores(
        pairs=np.searchsorted(ids, [pair.pair_id for pair in batch.pairs]),
        positions=places,
        roles=_role_codes(batch, roles, places),
        scores={str(component): _whole(given, places.shape[1]) for component, given in batch.result.scores.items()},
    )


def _roles_of(batches: Sequence[ScoredBatch]) -> list[str]:
    return sorted({role for batch in batches for pair in batch.pairs for role in pair.roles if role is not None})


def _role_codes(
    batch: ScoredBatch, roles: list[str], places: Int[np.ndarray, "pair place"]
) -> Int[np.ndarray, "pair place"]:
    """Return the code of the role at each place; -1 for none."""
    codes = {role: code for code, role in enumerate(roles)}
    role_at = np.array(
        [[-1 if role is None else codes[role] for role in pair.roles] for pair in batch.pairs], dtype=np.int32
    )
    return np.take_along_axis(role_at, np.maximum(places, 0), axis=1)


def _whole(given: np.ndarray, n_places: int) -> np.ndarray:
    """Put the zeros of a shared prefix before scores; the last axis is then ``n_places`` long."""
    if given.shape[-1] == n_places:
        return given
    whole = np.zeros((*given.shape[:-1], n_places), dtype=np.float32)
    whole[..., n_places - given.shape[-1] :] = given
    return whole


def _batch_rows(batch: ScoredBatch, roles: list[str]) -> tuple[pa.Table, Int[np.ndarray, " pair"]]:
    """Build the rows of pairs of one shape (pair, then component, layer, head, position); and count those of each."""
    n_pairs = len(batch.pairs)
    places = _places(batch)
    role_at = _role_codes(batch, roles, places)
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("component", "layer", "head", "position", "role", "score")
    }
    for component, given in batch.result.scores.items():
        score = _whole(given, places.shape[1])
        _, n_layers, n_heads, _ = shape = score.shape
        layer, head, _ = np.meshgrid(
            np.arange(n_layers, dtype=np.int16),
            np.arange(n_heads, dtype=np.int16) if component.has_heads else np.full(1, -1, dtype=np.int16),
            np.arange(places.shape[1]),
            indexing="ij",
        )
        columns["component"].append(np.full(score[0].size, _COMPONENT_CODES[component], dtype=np.int32))
        columns["layer"].append(layer.ravel())
        columns["head"].append(head.ravel())
        columns["position"].append(np.broadcast_to(places[:, None, None, :], shape).reshape(n_pairs, -1))
        columns["role"].append(np.broadcast_to(role_at[:, None, None, :], shape).reshape(n_pairs, -1))
        columns["score"].append(score.reshape(n_pairs, -1))
    one_pair = {name: np.concatenate(columns[name]) for name in ("component", "layer", "head")}
    ids = np.array([pair.pair_id for pair in batch.pairs], dtype=np.int64)
    flat = {
        "pair_id": np.repeat(ids, one_pair["layer"].size),
        **{name: np.tile(values, n_pairs) for name, values in one_pair.items()},
        **{name: np.concatenate(columns[name], axis=1).ravel() for name in ("position", "role", "score")},
    }
    held = (flat["position"] >= 0).reshape(n_pairs, -1)
    if not held.all():
        flat = {name: values[held.ravel()] for name, values in flat.items()}
    table = pa.Table.from_arrays(
        [
            pa.array(flat["pair_id"]),
            pa.DictionaryArray.from_arrays(pa.array(flat["component"]), _COMPONENT_NAMES),
            pa.array(flat["layer"]),
            pa.array(flat["head"], mask=flat["head"] < 0),
            pa.array(flat["position"]),
            pa.DictionaryArray.from_arrays(pa.array(flat["role"], mask=flat["role"] < 0), pa.array(roles, pa.string())),
            pa.array(flat["score"]),
        ],
        schema=SCORES,
    )
    return table, held.sum(axis=1)


def _places(batch: ScoredBatch) -> Int[np.ndarray, "pair place"]:
    """Return the position of each place along the last axis of a batch's rows; -1 where a pair has no row."""
    if batch.result.positions is not None:
        return batch.result.positions.astype(np.int32)
    n_tokens = batch.pairs[0].n_tokens
    return np.broadcast_to(np.arange(n_tokens, dtype=np.int32), (len(batch.pairs), n_tokens))


def baseline_rows(batches: Sequence[ScoredBatch]) -> pa.Table:
    """Build the baselines table of a chunk, in the order of the pairs' ids."""
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


def prompt_rows(batches: Sequence[ScoredBatch], texts: Mapping[int, str]) -> pa.Table:
    """Build the prompts table of a chunk, in the order of the pairs' ids; ``texts`` has the text of every token."""
    pairs = sorted((pair for batch in batches for pair in batch.pairs), key=lambda pair: pair.pair_id)
    return pa.Table.from_arrays(
        [
            pa.array([pair.pair_id for pair in pairs], pa.int64()),
            _token_texts([pair.clean for pair in pairs], texts),
            _token_texts([pair.corrupted for pair in pairs], texts),
            pa.array([pair.task for pair in pairs], pa.string()),
        ],
        schema=PROMPTS,
    )


def _token_texts(prompts: Sequence[tuple[int, ...]], texts: Mapping[int, str]) -> pa.Array:
    """Return lists of the texts of tokens; each text is made once, however many prompts have it."""
    lengths = np.array([len(tokens) for tokens in prompts], dtype=np.int32)
    tokens, which = np.unique(np.fromiter(chain.from_iterable(prompts), np.int64), return_inverse=True)
    values = pa.array([texts[token] for token in tokens.tolist()], pa.string()).take(pa.array(which.ravel()))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


def failure_rows(failures: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Build the failures table of a chunk, in the order of the pairs' ids."""
    return pa.Table.from_pylist(sorted(failures, key=itemgetter("pair_id")), schema=FAILURES)
