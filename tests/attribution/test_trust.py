"""How good the estimates are on the bundled model: heads at the last position of IOI pairs, against exact effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.ioi import Counterfactual, generate_ioi
from attrib_batch.spec import Component, MethodSpec

pytestmark = pytest.mark.slow

L20H0 = 20 * 9
N_PAIRS, TYPICAL = 24, (4, 6, 10, 18)
"""To measure all pairs takes a minute. These four are together much as all are: the estimates correlate with what is
measured at 0.83 (``atp``) and 0.92 (``atp_ig``), which of all it is 0.83 and 0.93."""


def at_end(model: LoadedModel, pairs: list[EncodedPair], kind: str) -> np.ndarray:
    """Scores of every head at the last position (pair, layer and head)."""
    found = {}
    for _, outcome in score_pairs(model, pairs, [MethodSpec.model_validate({"id": kind})], TokenBudget(4096)):
        assert isinstance(outcome, ScoredBatch)
        for pair, scores in zip(outcome.pairs, outcome.result.scores[Component.Z], strict=True):
            found[pair.pair_id] = scores[:, :, -1].ravel()
    return np.array([found[pair.pair_id] for pair in pairs])


def measured(model: LoadedModel, pairs: list[EncodedPair]) -> np.ndarray:
    """The effects of replacing heads at the last position alone; for ``exact`` the first position it is to patch."""
    return at_end(model, [replace(pair, first_difference=pair.n_tokens - 1) for pair in pairs], "exact")


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def encoded(model: LoadedModel, counterfactual: Counterfactual, n_pairs: int) -> list[EncodedPair]:
    rows = list(generate_ioi(n_pairs, 1, counterfactual, mirror=False))
    pairs = [pair for pair in encode_pairs(rows, model.tokenizer, prepend_bos=False) if isinstance(pair, EncodedPair)]
    assert len(pairs) == n_pairs
    return pairs


def test_atp_agrees_where_the_subject_becomes_another_name(smollm2) -> None:
    pairs = encoded(smollm2, Counterfactual.S2_TO_RANDOM, 3)
    truth, atp, atp_ig = measured(smollm2, pairs), at_end(smollm2, pairs, "atp"), at_end(smollm2, pairs, "atp_ig")
    assert pearson(atp, truth) >= 0.95
    assert pearson(atp_ig, truth) >= pearson(atp, truth)


def test_atp_misleads_on_one_head_where_the_subject_becomes_the_indirect_object(smollm2) -> None:
    """It exchanges the answers, so the two runs are further apart: the first order misses most of L20H0's effect."""
    every = encoded(smollm2, Counterfactual.S2_TO_IO, N_PAIRS)
    pairs = [every[index] for index in TYPICAL]
    truth, atp, atp_ig = measured(smollm2, pairs), at_end(smollm2, pairs, "atp"), at_end(smollm2, pairs, "atp_ig")
    off = np.abs((atp - truth).mean(0))
    assert int(off.argmax()) == L20H0
    assert off[L20H0] > 3 * np.sort(off)[-2]
    assert np.abs((atp_ig - truth).mean(0))[L20H0] < 0.6 * off[L20H0]
    assert pearson(atp, truth) < 0.9 < pearson(atp_ig, truth)
    refined = at_end(smollm2, pairs, "refined")
    assert pearson(refined, truth) > 0.999
    assert np.abs((refined - truth).mean(0))[L20H0] < 0.01 * off[L20H0]
    # Truly it is the strongest head of all; the first order puts it behind others.
    assert int(truth.mean(0).argmax()) == L20H0
    assert list(np.abs(atp.mean(0)).argsort()[::-1]).index(L20H0) >= 3
