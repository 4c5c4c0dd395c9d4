"""Pairs that cannot be scored on a model split over processes, and ranks that part."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from attrib_batch.attribution.engine import FailedPair, TokenBudget, score_pairs
from attrib_batch.attribution.metrics import logit_diff, register_metric
from attrib_batch.errors import ShardsDisagreeError
from attrib_batch.models.load import load_model
from attrib_batch.models.ranks import Agreement
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component, ModelSpec
from attrib_batch.spec.registries.metrics import registered_names
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_same_scores
from tests.support.ports import LOOPBACK, free_ports
from tests.support.ranks import Ranks, agreement
from tests.support.scored import encoded, method, score
from tests.support.shards import double, shard
from tests.support.terms import terms_of
from tests.support.tiny_models import NAMES, VOCABULARY


def one_bad_name(logits: Any, clean_logits: Any, answers: Any) -> Any:
    if (answers.right == VOCABULARY.index(NAMES[0])).any():
        raise ArithmeticError("no number for this name")
    return logit_diff(logits, clean_logits, answers)


def score_with_bad_pairs(model: ModelSpec, shards: int, pairs: list[EncodedPair]) -> dict[int, str | np.ndarray]:
    if "one_bad_name" not in registered_names:
        register_metric("one_bad_name", one_bad_name)
    found: dict[int, str | np.ndarray] = {}
    methods, agree = [method(metric="one_bad_name")], agreement[0].agree
    for _, outcome in score_pairs(shard(model, shards), pairs, methods, TokenBudget(4096), agree=agree):
        if isinstance(outcome, FailedPair):
            found[outcome.pair.pair_id] = outcome.message
        else:
            for index, pair in enumerate(outcome.pairs):
                found[pair.pair_id] = outcome.result.scores[Component.Z][index]
    return found


def test_a_bad_pair_costs_no_other_its_scores(ranks: Ranks, tiny: Callable[[str], Path]) -> None:
    model, pairs = double(tiny("llama")), encoded(random_pairs(9, 8, 4, seed=3))
    bad = {pair.pair_id for pair in pairs if VOCABULARY.index(NAMES[0]) in pair.answers}
    assert 0 < len(bad) < len(pairs) - 1
    whole = load_model(model)
    for ours in ranks.run(score_with_bad_pairs, model, 2, pairs):
        assert set(ours) == {pair.pair_id for pair in pairs}
        for pair in pairs:
            if pair.pair_id in bad:
                assert ours[pair.pair_id] == "ArithmeticError: no number for this name"
            else:
                [theirs] = score(whole, [pair], method()).values()
                mine, others = {Component.Z: ours[pair.pair_id]}, {Component.Z: theirs[Component.Z][..., 4:]}
                assert_same_scores(mine, others, terms_of(whole.module, pair), dtype=model.dtype)


_stores: list[TCPStore] = []


def verdicts(port: int, of_ranks: list[list[str]], seconds: float) -> list[str]:
    """This rank's verdicts one after the other; how each was answered, and how many keys are left at the end."""
    rank = int(os.environ["RANK"])
    _stores.append(TCPStore(LOOPBACK, port, 2, is_master=rank == 0, timeout=timedelta(seconds=20)))
    here = Agreement(_stores[-1], rank, 2, timedelta(seconds=seconds))
    said = []
    for verdict in of_ranks[rank]:
        try:
            here.agree(verdict)
        except ShardsDisagreeError as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("agreed")
    return said


def test_equal_verdicts_agree_whatever_their_messages(ranks: Ranks) -> None:
    first = ["ok", "out of memory", "ValueError: pair 1 of rank 0", "ok"]
    second = ["ok", "out of memory", "ValueError: another message", "ok"]
    assert ranks.run(verdicts, free_ports(1)[0], [first, second], 20.0) == [["agreed"] * 4] * 2


@pytest.mark.parametrize(
    ("other", "kind"), [("out of memory", "ShardsOutOfMemoryError"), ("ValueError: no", "ShardsDisagreeError")]
)
def test_different_verdicts_are_told_apart_by_all(ranks: Ranks, other: str, kind: str) -> None:
    for said in ranks.run(verdicts, free_ports(1)[0], [["ok", "ok"], ["ok", other]], 20.0):
        assert said[0] == "agreed"
        assert said[1] == f"{kind}: attempt 1 ended differently in the ranks of a model: rank 0: ok; rank 1: {other}"


def test_a_missing_rank_is_not_waited_for_longer_than_the_timeout(ranks: Ranks) -> None:
    waited, absent = ranks.run(verdicts, free_ports(1)[0], [["ok"], []], 0.5)
    assert absent == []
    assert "rank 0 of 2 ended attempt 0 with 'ok', and not all others said within 0:00:00.500000" in waited[0]


def agree_often(port: int, times: int) -> int:
    rank = int(os.environ["RANK"])
    _stores.append(TCPStore(LOOPBACK, port, 2, is_master=rank == 0, timeout=timedelta(seconds=20)))
    before = _stores[-1].num_keys()
    here = Agreement(_stores[-1], rank, 2, timedelta(seconds=20))
    for _ in range(times):
        here.agree("ok")
    return _stores[-1].num_keys() - before


def test_the_store_does_not_grow(ranks: Ranks) -> None:
    assert max(ranks.run(agree_often, free_ports(1)[0], 50)) <= 4


def answer(verdict: str) -> str:
    try:
        agreement[0].agree(verdict)
    except ShardsDisagreeError as error:
        return str(error)
    return "agreed"


def leave_a_collective_over() -> str:
    """Rank 0 enters a collective that rank 1 never reaches; then both say that they raised."""
    if os.environ["RANK"] == "0":
        torch.distributed.all_reduce(torch.ones(1), async_op=True)
    return answer("ValueError: alike")


def raise_alone() -> str:
    """Rank 1 raises where rank 0 goes on into a collective."""
    if os.environ["RANK"] == "1":
        return answer("ValueError: alone")
    try:
        torch.distributed.all_reduce(torch.ones(1))
    except RuntimeError as error:
        return answer(f"RuntimeError: {error}")
    return "the collective worked"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (leave_a_collective_over, "with 'ValueError: alike' in every rank, and the ranks do not meet any more"),
        (raise_alone, r"rank 1: ValueError: alone|rank 1 of 2 ended attempt 0 with 'ValueError: alone', and not all"),
    ],
    ids=["alike at different places", "one alone"],
)
def test_ranks_that_part_find_out_within_the_timeout(part: Callable[[], str], message: str) -> None:
    group = Ranks(2, collective_seconds=3)
    try:
        for said in group.run(part, seconds=60):
            assert re.search(message, said), said
    finally:
        group.close()
