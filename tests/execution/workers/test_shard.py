"""The worker that owns a shard: how its gang comes together, without one."""

from __future__ import annotations

import socket

import pytest

from attrib_batch.execution.ray.gangs import Gang
from attrib_batch.execution.workers.shard import ShardWorker
from attrib_batch.spec import ModelSpec
from tests.support.ports import LOOPBACK

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
