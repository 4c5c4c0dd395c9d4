"""What cannot be split over processes, or not on these devices, is refused with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from attrib_batch.errors import ModelError, ShardGroupError
from attrib_batch.models import ranks, sharded
from attrib_batch.models.load import read_config
from attrib_batch.models.ranks import join_ranks
from attrib_batch.models.sharded import load_shard
from attrib_batch.spec import ModelSpec
from tests.support.ports import LOOPBACK, free_ports
from tests.support.shards import model_job
from tests.support.tiny_models import EVERY_ARCHITECTURE, save_tiny


def check_degree(job: ModelSpec, shards: int) -> None:
    sharded.check_degree(job, read_config(job), shards)


def test_an_impossible_degree_is_refused_with_the_possible_ones(tiny: Callable[[str], Path]) -> None:
    check_degree(model_job(tiny("llama")), 2)
    for shards in (1, 3, 4):
        with pytest.raises(ModelError, match=rf"into {shards} shards.*heads \(4\).*heads \(2\).*\(96\); possible: 2$"):
            check_degree(model_job(tiny("llama")), shards)
    check_degree(model_job(tiny("gpt_neox")), 4)
    with pytest.raises(ModelError, match=r"heads \(4\), MLP width \(96\); possible: 2, 4$"):
        check_degree(model_job(tiny("gpt_neox")), 3)
    check_degree(model_job("smollm2-135m"), 3)
    with pytest.raises(ModelError, match=r"heads \(9\), key/value heads \(3\), MLP width \(1536\); possible: 3$"):
        check_degree(model_job("smollm2-135m"), 2)


def test_a_model_without_a_plan_is_refused_with_what_to_do(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gpt2 has no tensor-parallel plan.*kind replica.*gpus 2 or more"):
        check_degree(model_job(tiny("gpt2")), 2)
    folder = save_tiny("llama", tmp_path / "m")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_key_value_heads": 2', '"num_key_value_heads": 1'))
    with pytest.raises(ModelError, match=r"key/value heads \(1\), MLP width \(96\) have no common divisor"):
        check_degree(model_job(folder), 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("olmo_clipped", "in place, where no gradient passes"),
        ("llama4", "in place, where no gradient passes"),
        ("cohere_normed", "the plan splits the heads and not their norms"),
    ],
)
def test_a_plan_by_which_the_model_does_not_compute_is_refused(name: str, reason: str) -> None:
    config = EVERY_ARCHITECTURE[name]().config
    with pytest.raises(ModelError, match=f"cannot be split into shards: .*{reason}.*Use workers of kind replica"):
        sharded.check_degree(model_job("m"), config, 2)


def test_a_plan_that_cannot_be_traced_is_refused(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", {"layers.*.mlp": "megamoe_experts"})
    with pytest.raises(ModelError, match="its tensor-parallel plan uses megamoe_experts, whose activations"):
        check_degree(model_job(tiny("llama")), 2)


def test_a_degree_that_is_not_the_number_of_ranks_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ShardGroupError, match="into 2 shards, but 0 ranks were joined"):
        load_shard(model_job(tiny("llama")), 2)
    with pytest.raises(ModelError, match="cannot be split into 3 shards"):
        load_shard(model_job(tiny("llama")), 3)


@pytest.mark.slow
def test_a_rank_whose_others_do_not_come_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    port = free_ports(1)[0]
    with pytest.raises(ShardGroupError, match=rf"rank 1 of 2 did not meet the others at 127\.0\.0\.1:{port} within"):
        join_ranks(1, 2, LOOPBACK, port, timeout=timedelta(seconds=1))


def test_devices_of_shards(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny("llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, message in (("cpu", "gpus: 0 for the CPU"), ("cuda:1", "the only GPU its worker sees")):
        with pytest.raises(ModelError, match=message):
            load_shard(model_job(folder, device=device), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=r"rank 0 sees 2 GPUs.*CUDA_VISIBLE_DEVICES"):
        join_ranks(0, 2, LOOPBACK, free_ports(1)[0], timeout=timedelta(seconds=1))


@pytest.mark.parametrize(
    ("address", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.5", False), ("n1", False)]
)
def test_loopback_addresses(address: str, local: bool) -> None:
    assert ranks._is_loopback(address) is local


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
