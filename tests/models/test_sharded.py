"""Models split over processes: what every rank scores equals what one process with the whole model scores."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore
from transformers import LlamaConfig

from attrib_batch.attribution.engine import FailedPair, TokenBudget, score_pairs
from attrib_batch.attribution.metrics import logit_diff, register_metric
from attrib_batch.errors import ModelError, ShardGroupError, ShardsDisagreeError
from attrib_batch.metric_names import registered_names
from attrib_batch.models import sharded
from attrib_batch.models.load import LoadedModel, load_model
from attrib_batch.models.sharded import Agreement, check_degree, join_ranks, load_shard, parameters_here
from attrib_batch.pairs.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.tutorial import tutorial_pairs
from attrib_batch.schema import Component
from attrib_batch.spec import MethodJob, ModelJob
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.ports import free_ports
from tests.support.ranks import Ranks, agreement
from tests.support.scored import assert_same_scores, encoded, method, score
from tests.support.tiny_models import NAMES, VOCABULARY, save_tiny

Scores = dict[int, dict[Component, np.ndarray]]

WITH_PLAN = [
    "gemma2",
    "gemma3",
    "gpt_neox",
    "gpt_neox_sequential",
    "llama",
    "mistral",
    "mistral_short_window",
    "olmo2",
    "phi",
    "qwen2",
    "qwen3",
]
DOUBLE = 1e-6
"""Of the largest score: scores are kept in float32."""
KINDS = ["atp", "atp_ig", "atp_star", "exact"]
METRICS = ["logit_diff", "prob_diff", "log_prob", "kl"]


def job(model: object, **options: object) -> ModelJob:
    return ModelJob.model_validate({"id": str(model), "prepend_bos": False, **options})


def double(folder: Path, **options: object) -> ModelJob:
    """In float64, which no job file offers: shards add up in another order, and only rounding may come of it."""
    return job(folder, **options).model_copy(update={"dtype": "float64"})


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    group = Ranks(2)
    yield group
    group.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, saved once."""
    return cache(lambda name: save_tiny(name, tmp_path_factory.mktemp(name)))


# What runs in the ranks.


LOADED: dict[tuple[str, int], LoadedModel] = {}
"""What this rank has loaded, by the job's model and the number of shards."""


def shard(model: ModelJob, shards: int) -> LoadedModel:
    key = model.model_dump_json(), shards
    if key not in LOADED:
        LOADED[key] = load_shard(model, shards)
    return LOADED[key]


def score_on_shard(
    model: ModelJob, shards: int, pairs: list[EncodedPair], methods: list[MethodJob]
) -> dict[str, Scores]:
    return {job.id: score(shard(model, shards), pairs, job) for job in methods}


def held(model: ModelJob, shards: int) -> int:
    loaded = shard(model, shards)
    assert loaded.sharded
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not loaded.module.training
    return parameters_here(loaded)


def assert_equal(
    group: Ranks, model: ModelJob, pairs: list[EncodedPair], methods: list[MethodJob], **close: Any
) -> None:
    """Every rank's scores equal the whole model's."""
    whole = load_model(model)
    assert not whole.sharded
    every = group.run(score_on_shard, model, group.size, pairs, methods)
    assert len(every) == group.size
    for job in methods:
        theirs = score(whole, pairs, job)
        for ours in every:
            for pair in pairs:
                for component in job.components:
                    assert_same_scores(ours[job.id][pair.pair_id][component], theirs[pair.pair_id][component], **close)


def mixed_pairs() -> list[EncodedPair]:
    """Pairs with a prefix longer than the short window, and pairs without one."""
    return encoded(random_pairs(2, 10, 7) + random_pairs(2, 5, 0, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_and_direction_on_every_component(ranks: Ranks, tiny: Callable[[str], Path], kind: str) -> None:
    methods = [
        method(id=f"{metric}-{direction}", kind=kind, components=list(Component), metric=metric, direction=direction)
        for metric in METRICS
        for direction in ("denoise", "noise")
        if not (metric == "kl" and direction == "noise" and kind in {"atp", "atp_star"})
    ]
    assert_equal(ranks, double(tiny("llama")), mixed_pairs(), methods, tolerance=DOUBLE)


@pytest.mark.parametrize("name", WITH_PLAN)
def test_every_component_of_every_architecture(ranks: Ranks, tiny: Callable[[str], Path], name: str) -> None:
    model = double(tiny(name))
    components = list(load_model(model).architecture.sites)
    methods = [method(id=kind, kind=kind, components=components) for kind in ("atp", "atp_star", "exact")]
    assert_equal(ranks, model, mixed_pairs(), methods, tolerance=DOUBLE)


def test_eager_attention_and_a_start_that_prefixes_share(ranks: Ranks, tiny: Callable[[str], Path]) -> None:
    start = [VOCABULARY.index(f"w{i}") for i in range(20)]
    pairs = encoded(
        [
            TokenPair(start + pair.clean, start + pair.corrupted, pair.answers, pair.wrong_answers)
            for pair in random_pairs(4, 8, 4, seed=2)
        ]
    )
    model = double(tiny("qwen3"), attention="eager")
    assert_equal(ranks, model, pairs, [method(components=list(Component))], tolerance=DOUBLE)


@pytest.mark.parametrize("component", Component)
def test_one_component_alone(ranks: Ranks, tiny: Callable[[str], Path], component: Component) -> None:
    """The first tensor that is read starts the graph; on a shard it may be one that was gathered."""
    assert_equal(ranks, double(tiny("qwen3")), mixed_pairs(), [method(components=[component])], tolerance=DOUBLE)


@pytest.mark.parametrize("name", WITH_PLAN)
def test_a_rank_holds_its_share_of_every_matrix(ranks: Ranks, tiny: Callable[[str], Path], name: str) -> None:
    """Embedding and unembedding too; only what is a vector (norms, biases after a sum) is held by every rank."""
    folder = tiny(name)
    whole = load_model(job(folder)).module
    matrices = sum(parameter.numel() for parameter in whole.parameters() if parameter.ndim == 2)
    vectors = sum(parameter.numel() for parameter in whole.parameters() if parameter.ndim == 1)
    for found in ranks.run(held, double(folder), 2):
        assert matrices / 2 < found <= matrices / 2 + vectors


@pytest.mark.slow
def test_the_bundled_model_over_three_ranks(smollm2: LoadedModel) -> None:
    pairs = [
        pair
        for pair in encode_pairs(tutorial_pairs(), smollm2.tokenizer, prepend_bos=False)
        if isinstance(pair, EncodedPair)
    ]
    assert len(pairs) == 8
    methods = [
        method(),
        method(id="noise", kind="atp", components=["q", "k", "v", "mlp_out"], direction="noise", metric="log_prob"),
        method(id="atp_ig", ig_steps=2, components=["z"]),
    ]
    group = Ranks(3)
    model = job("smollm2-135m")
    try:
        assert_equal(group, model, pairs, methods)
        assert parameters_here(smollm2) == 134_515_008
        assert group.run(held, model, 3) == [44_861_760] * 3
    finally:
        group.close()


# Pairs that cannot be scored, and ranks that part.


def one_bad_name(logits: Any, clean_logits: Any, answers: Any) -> Any:
    if (answers.right == VOCABULARY.index(NAMES[0])).any():
        raise ArithmeticError("no number for this name")
    return logit_diff(logits, clean_logits, answers)


def score_with_bad_pairs(model: ModelJob, shards: int, pairs: list[EncodedPair]) -> dict[int, str | np.ndarray]:
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
                assert_same_scores(np.asarray(ours[pair.pair_id]), theirs[Component.Z][..., 4:], tolerance=DOUBLE)


_stores: list[TCPStore] = []


def verdicts(port: int, of_ranks: list[list[str]], seconds: float) -> list[str]:
    """This rank's verdicts one after the other; how each was answered, and how many keys are left at the end."""
    rank = int(os.environ["RANK"])
    _stores.append(TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=timedelta(seconds=20)))
    here = Agreement(_stores[-1], rank, 2, timedelta(seconds=seconds))
    said = []
    for verdict in of_ranks[rank]:
        try:
            here.agree(verdict)
        except ShardsDisagreeError as error:
            said.append(str(error))
        else:
            said.append("agreed")
    return said


def test_equal_verdicts_agree_whatever_their_messages(ranks: Ranks) -> None:
    first = ["ok", "out of memory", "ValueError: pair 1 of rank 0", "ok"]
    second = ["ok", "out of memory", "ValueError: another message", "ok"]
    assert ranks.run(verdicts, free_ports(1)[0], [first, second], 20.0) == [["agreed"] * 4] * 2


@pytest.mark.parametrize("other", ["out of memory", "ValueError: no"])
def test_different_verdicts_are_told_apart_by_all(ranks: Ranks, other: str) -> None:
    for said in ranks.run(verdicts, free_ports(1)[0], [["ok", "ok"], ["ok", other]], 20.0):
        assert said[0] == "agreed"
        assert said[1] == f"attempt 1 ended differently in the ranks of a model: rank 0: ok; rank 1: {other}"


def test_a_missing_rank_is_not_waited_for_longer_than_the_timeout(ranks: Ranks) -> None:
    waited, absent = ranks.run(verdicts, free_ports(1)[0], [["ok"], []], 0.5)
    assert absent == []
    assert "rank 0 of 2 ended attempt 0 with 'ok', and not all others said within 0:00:00.500000" in waited[0]


def agree_often(port: int, times: int) -> int:
    rank = int(os.environ["RANK"])
    _stores.append(TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=timedelta(seconds=20)))
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
        for said in group.run(part, seconds=15):
            assert re.search(message, said), said
    finally:
        group.close()


# What is refused.


def test_an_impossible_degree_is_refused_with_the_possible_ones(tiny: Callable[[str], Path]) -> None:
    check_degree(job(tiny("llama")), 2)
    for shards in (1, 3, 4):
        with pytest.raises(ModelError, match=rf"into {shards} shards.*heads \(4\).*heads \(2\).*\(96\); possible: 2$"):
            check_degree(job(tiny("llama")), shards)
    check_degree(job(tiny("gpt_neox")), 4)
    with pytest.raises(ModelError, match=r"heads \(4\), MLP width \(96\); possible: 2, 4$"):
        check_degree(job(tiny("gpt_neox")), 3)
    check_degree(job("smollm2-135m"), 3)
    with pytest.raises(ModelError, match=r"heads \(9\), key/value heads \(3\), MLP width \(1536\); possible: 3$"):
        check_degree(job("smollm2-135m"), 2)


def test_a_model_without_a_plan_is_refused_with_what_to_do(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gpt2 has no tensor-parallel plan.*kind replica.*gpus 2 or more"):
        check_degree(job(tiny("gpt2")), 2)
    folder = save_tiny("llama", tmp_path / "m")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_key_value_heads": 2', '"num_key_value_heads": 1'))
    with pytest.raises(ModelError, match=r"key/value heads \(1\), MLP width \(96\) have no common divisor"):
        check_degree(job(folder), 2)


def test_a_plan_that_cannot_be_traced_is_refused(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", {"layers.*.mlp": "megamoe_experts"})
    with pytest.raises(ModelError, match="its tensor-parallel plan uses megamoe_experts, whose activations"):
        check_degree(job(tiny("llama")), 2)


def test_a_degree_that_is_not_the_number_of_ranks_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ShardGroupError, match="into 2 shards, but 0 ranks were joined"):
        load_shard(job(tiny("llama")), 2)
    with pytest.raises(ModelError, match="cannot be split into 3 shards"):
        load_shard(job(tiny("llama")), 3)


def test_a_rank_whose_others_do_not_come_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    port = free_ports(1)[0]
    with pytest.raises(ShardGroupError, match=rf"rank 1 of 2 did not meet the others at 127\.0\.0\.1:{port} within"):
        join_ranks(1, 2, "127.0.0.1", port, timeout=timedelta(seconds=1))


def test_devices_of_shards(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, message in (("cpu", "hide the GPUs from the workers"), ("cuda:1", "the only GPU its worker sees")):
        with pytest.raises(ModelError, match=message):
            load_shard(job(folder, device=device), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=r"rank 0 sees 2 GPUs.*CUDA_VISIBLE_DEVICES"):
        join_ranks(0, 2, "127.0.0.1", free_ports(1)[0], timeout=timedelta(seconds=1))


@pytest.mark.parametrize(
    ("address", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.5", False), ("n1", False)]
)
def test_loopback_addresses(address: str, local: bool) -> None:
    assert sharded._is_loopback(address) is local


def test_a_gpu_of_its_own_is_the_first_a_rank_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is at hand: what is asked of torch is looked at."""
    asked: dict[str, object] = {}

    def record(backend: str, **options: object) -> None:
        asked.update(options, backend=backend)

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(device=device))
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *_, **__: torch.distributed.HashStore())
    monkeypatch.setattr(torch.distributed.distributed_c10d, "init_process_group", record)
    join_ranks(1, 2, "10.0.0.5", 29500, timeout=timedelta(seconds=7))
    assert asked["device"] == asked["device_id"] == torch.device("cuda", 0)
    assert (asked["backend"], asked["rank"], asked["timeout"]) == ("nccl", 1, timedelta(seconds=7))
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == ("1", "0", "2")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
