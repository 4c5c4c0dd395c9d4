"""The worker that owns a shard: how its gang comes together, without one."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest
import torch

from attrib_batch.attribution.engine import TokenBudget
from attrib_batch.execution.ray.gangs import Gang
from attrib_batch.execution.workers.shard import ShardWorker
from attrib_batch.spec import ModelSpec
from tests.support.ports import LOOPBACK
from tests.support.scored import tiny_model

SPEC = ModelSpec.model_validate({"id": "x", "prepend_bos": False, "workers": {"kind": "sharded", "shards": 2}})


def test_gangs_that_start_at_once_hold_their_ports_until_they_load() -> None:
    workers = [ShardWorker(SPEC, (), 0) for _ in range(3)]
    ports = [worker.listen(LOOPBACK) for worker in workers]
    assert len(set(ports)) == 3
    for worker, port in zip(workers, ports, strict=True):
        with pytest.raises(OSError, match="in use"):
            socket.create_server((LOOPBACK, port))
        assert worker._listener is not None
        worker._listener.close()


@pytest.mark.parametrize(("ran_out", "tokens"), [(0, 100), (1, 50), (3, 12), (9, 1)])
def test_a_gang_after_others_that_ran_out_of_memory_makes_smaller_batches(
    ran_out: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch, "set_num_threads", lambda _n: None)
    monkeypatch.setattr("attrib_batch.models.ranks.join_ranks", lambda *_, **__: SimpleNamespace(largest=list))
    monkeypatch.setattr("attrib_batch.models.sharded.load_shard", lambda *_, **__: tiny_model("llama"))
    worker = ShardWorker(SPEC.model_copy(update={"batch_tokens": 100}), (), 0, ran_out)
    report = worker.load((LOOPBACK, 1))
    assert worker._budget == TokenBudget(tokens)
    assert report.arithmetic["device"] == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it was given no GPU, and must not meet others on one"


def test_the_first_rank_says_where_the_gang_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: LOOPBACK)
    met: list[object] = []

    class Actor:
        """An actor that answers in this process."""

        def __init__(self) -> None:
            self.worker = ShardWorker(SPEC, (), 0)
            self.load = self

        @property
        def __ray_call__(self) -> Actor:
            return self

        def remote(self, given: object) -> object:
            if callable(given):
                return given(self.worker)
            met.append(given)
            return given

    actors = [Actor(), Actor()]
    Gang(actors, group=object()).load()
    listener = actors[0].worker._listener
    assert listener is not None
    assert met == [listener.getsockname()] * 2
    listener.close()
