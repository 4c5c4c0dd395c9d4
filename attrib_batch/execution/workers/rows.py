"""Build the rows of a chunk's tables beside its scores: whole columns at a time, no Python loop per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.execution.workers.score_rows import places_of, roles_of
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.tables import BASELINES, MEASURED, PROMPTS
from attrib_batch.tables.dense import DenseChunk, DenseScores, PairFacts, units_of
from attrib_batch.tables.shortening import shortened
from attrib_batch.tables.sums import MomentPieces


def moment_rows(batches: Sequence[ScoredBatch]) -> tuple[pa.Table, pa.Table]:
    """Build the moments and the strata of a chunk; see `attrib_batch.tables.moments`."""
    pieces = moment_pieces(batches)
    moments, strata = pieces.tables([pieces.compute(index) for index in range(len(pieces))])
    return shortened(moments), shortened(strata)


def moment_pieces(batches: Sequence[ScoredBatch]) -> MomentPieces:
    """Cut the moments of a chunk into pieces."""
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
    roles = roles_of(batches)
    blocks = [_dense(batch, roles, ids) for batch in batches]
    components = list(batches[0].result.scores) if batches else []
    heads = {str(component): component.has_heads for component in components}
    return MomentPieces(DenseChunk(facts, blocks, roles, heads))


def _dense(batch: ScoredBatch, roles: list[str], ids: Int[np.ndarray, " chunk_pair"]) -> DenseScores:
    places = places_of(batch)
    return DenseScores(
        pairs=np.searchsorted(ids, [pair.pair_id for pair in batch.pairs]),
        positions=places,
        roles=_role_codes(batch, roles, places),
        scores={str(component): given for component, given in batch.result.scores.items()},
    )


def _role_codes(
    batch: ScoredBatch, roles: list[str], places: Int[np.ndarray, "pair place"]
) -> Int[np.ndarray, "pair place"]:
    """Return the code of the role at each place; -1 for none."""
    codes = {role: code for code, role in enumerate(roles)}
    role_at = np.array(
        [[-1 if role is None else codes[role] for role in pair.roles] for pair in batch.pairs], dtype=np.int32
    )
    return np.take_along_axis(role_at, np.maximum(places, 0), axis=1)


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


def measured_rows(batches: Sequence[ScoredBatch]) -> pa.Table | None:
    """Build the table of a chunk's scores that were measured in place of estimates, in the order of the pairs' ids.

    None where its method measures no score or all of them.
    """
    parts = [
        _measured_of(batch, component, estimates)
        for batch in batches
        for component, estimates in (batch.result.estimates or {}).items()
    ]
    if not parts:
        return None
    order = [(name, "ascending") for name in ("pair_id", "component", "layer", "head", "position")]
    return pa.concat_tables(parts).sort_by(order).cast(MEASURED)


def _measured_of(
    batch: ScoredBatch, component: Component, estimates: Float[np.ndarray, "pair layer head place"]
) -> pa.Table:
    pair, layer, head, place = np.nonzero(~np.isnan(estimates))
    places = places_of(batch)
    position = places[pair, place + places.shape[1] - estimates.shape[-1]]
    roles = [batch.pairs[index].roles[at] for index, at in zip(pair.tolist(), position.tolist(), strict=True)]
    return pa.table(
        {
            "pair_id": np.array([one.pair_id for one in batch.pairs], dtype=np.int64)[pair],
            "component": pa.array([str(component)] * len(pair), pa.string()),
            "layer": layer.astype(np.int16),
            "head": pa.array(head.astype(np.int16), mask=np.full(len(head), not component.has_heads)),
            "position": position,
            "role": pa.array(roles, pa.string()),
            "estimate": estimates[pair, layer, head, place],
        }
    )
