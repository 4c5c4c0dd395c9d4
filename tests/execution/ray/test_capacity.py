"""How many workers fit on which nodes, what is said when they do not, and how long a run waits for nodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib_batch.errors import RequestError, RunInterruptedError
from attrib_batch.execution.ray import capacity
from attrib_batch.execution.ray.capacity import (
    ROUNDING,
    Claim,
    ClusterRoom,
    Demand,
    actor_resources,
    room_for,
    share_room,
    shortage,
)
from attrib_batch.spec import WorkersSpec

GB = 10**9


def workers(**changes: Any) -> WorkersSpec:
    return WorkersSpec.model_validate(changes)


def node(cpus: float, gpus: float = 0, memory: float = 64 * GB, **custom: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": memory, **custom}


@pytest.mark.parametrize(
    ("asked", "nodes", "room"),
    [
        ({"cpus": 1}, [], 0),
        ({"cpus": 1}, [node(2), node(3)], 5),
        ({"cpus": 2}, [node(1), node(3)], 1),  # together 4, but no two on one node
        ({"cpus": 0.1}, [node(1)], 10),  # 1 / 0.1 is a little less than 10 in binary
        ({"cpus": 1, "gpus": 0.5}, [node(8, 1), node(8)], 2),
        ({"memory": "24GB"}, [node(8), node(1)], 3),
        ({"resources": {"disk": 0.5}}, [node(8, disk=1), node(8)], 2),
        ({"kind": "ndif", "resources": {"ndif_session": 1}}, [node(8, ndif_session=2)], 2),
        ({"kind": "sharded", "shards": 2, "cpus": 2}, [node(3), node(3)], 0),
        ({"kind": "sharded", "shards": 2, "cpus": 2}, [node(4), node(9)], 3),
        ({"kind": "sharded", "shards": 2, "cpus": 2, "placement": "spread"}, [node(3), node(3)], 1),
        ({"kind": "sharded", "shards": 3, "memory": "20GB"}, [node(8), node(8, memory=50 * GB)], 1),
    ],
)
def test_room(asked: dict[str, Any], nodes: list[dict[str, float]], room: int) -> None:
    assert room_for(Demand.of(workers(**asked)), nodes) == room


@pytest.mark.parametrize(
    ("asked", "count", "nodes", "says"),
    [
        ({"cpus": 4}, 2, [node(4)], "2 workers ask for 8 CPUs together, and Ray has 4. Lower workers.count"),
        ({"memory": "48GB"}, 2, [node(8)], "2 workers ask for 96 GB of memory together, and Ray has 64 GB."),
        ({"resources": {"disk": 1}}, 1, [node(8)], "1 workers ask for 1 disk together, and Ray has 0."),
        ({"cpus": 4}, 1, [node(2), node(2)], "an actor asks for 4 CPUs on one node, and the largest has 2."),
        (
            {"kind": "sharded", "shards": 2, "gpus": 1}, 1, [node(8, 1), node(8, 1)],
            "2 shards ask for 2 GPUs on one node, and the largest has 1. Use placement: spread, or fewer GPUs",
        ),
        (
            {"cpus": 3}, 2, [node(5), node(2)],
            "2 workers do not fit: on one node an actor asks for 3 CPUs, and the nodes have 5 CPUs; 2 CPUs: room for 1",
        ),
        (
            {"cpus": 1, "gpus": 1}, 1, [node(8), node(0, 2)],
            "an actor asks for 1 CPUs, 1 GPUs, and the nodes have 8 CPUs, 0 GPUs; 0 CPUs, 2 GPUs: room for 0 workers",
        ),
    ],
)  # fmt: skip
def test_shortages_say_what_is_asked_and_what_is_there(
    asked: dict[str, Any], count: int, nodes: list[dict[str, float]], says: str
) -> None:
    assert room_for(Demand.of(workers(**asked)), nodes) < count
    assert says in shortage(workers(**asked), count, nodes)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * GB), ("8 gb", 8 * GB), ("8GiB", 8 << 30), ("1.5MB", 1_500_000), ("512", 512), (4096, 4096)],
)
def test_sizes(text: str | int, size: int) -> None:
    asked = workers(memory=text)
    assert asked.memory == size
    assert actor_resources(asked) == {"CPU": 1, "memory": size}
    assert WorkersSpec.model_validate(asked.model_dump(mode="json")) == asked


class Clock:
    """The time and the nodes a run sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
        self.now, self.nodes, self.pending = 1000.0, list(nodes), False
        self.grows = False
        monkeypatch.setattr(capacity.time, "monotonic", lambda: self.now)

    def watch(self, most: int = 100, **asked: Any) -> ClusterRoom:
        return ClusterRoom(
            workers(**asked),
            most,
            nodes=lambda: self.nodes,
            starting=lambda: self.pending,
            grows=lambda: self.grows,
        )

    def wait(self, room: ClusterRoom, seconds: float) -> list[int]:
        """The numbers of workers wanted in the meantime, as they change."""
        end, wanted = self.now + seconds, []
        while self.now < end:
            self.now += 1
            if room.changed():
                wanted.append(room.wanted)
        return wanted


def test_auto_follows_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, node(2))
    room = clock.watch(most=5, count="auto", cpus=1)
    assert room.wanted == 2
    assert clock.wait(room, 30) == []
    clock.nodes.append(node(2))
    assert clock.wait(room, 10) == [4]
    clock.nodes.append(node(8))
    assert clock.wait(room, 10) == [5]  # there are no more tasks
    clock.nodes = []
    assert clock.wait(room, 10) == [1]  # it waits for a node
    clock.nodes = [node(3)]
    assert clock.wait(room, 10) == [3]


def test_auto_makes_an_autoscaler_start_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, node(0))
    clock.grows = clock.pending = True
    room = clock.watch(count="auto", gpus=1, most=10)
    assert room.wanted == 1
    seen = [room.wanted]
    for _ in range(8):  # a node comes for every worker that waits for one
        clock.nodes = [node(0), *[node(4, 1)] * room.wanted]
        seen += clock.wait(room, 10)
    assert seen == [1, 2, 3, 4, 6, 9, 10]


def test_a_fixed_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, node(2))
    room = clock.watch(most=5, count=4)
    clock.nodes.append(node(8))
    assert (room.wanted, clock.wait(room, 30)) == (4, [])
    assert clock.watch(most=3, count=4).wanted == 3


def test_nothing_that_could_hold_a_worker_ends_the_run_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, node(0))
    room = clock.watch(count="auto", gpus=1)
    assert room.wanted == 1
    start = clock.now
    with pytest.raises(RequestError, match=r"in 6\d s the cluster added no node .* 1 CPUs, 1 GPUs, and the"):
        clock.wait(room, 1000)
    assert 60 <= clock.now - start <= 70


def test_nodes_on_their_way_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, node(0))
    room = clock.watch(count=2)
    clock.pending = True
    clock.wait(room, 900)
    clock.pending, clock.nodes = False, [node(0), node(2)]
    clock.wait(room, 30)
    clock.nodes = [node(0)]  # taken away again; the next may take its time
    clock.wait(room, 600)
    clock.nodes = [node(0), node(2)]
    clock.wait(room, 30)
    clock.nodes = [node(0)]
    with pytest.raises(RunInterruptedError, match="for 30 minutes no node could hold a worker"):
        clock.wait(room, 3000)


def claim(count: int, bytes_each: int = 0, **asked: Any) -> Claim:
    return Claim(workers(**asked), count, bytes_each)


PACKED = {"kind": "sharded", "shards": 2, "cpus": 2}


@pytest.mark.parametrize(
    ("claims", "nodes", "shares"),
    [
        ([], [node(4)], []),
        ([claim(9), claim(9)], [], [0, 0]),
        ([claim(9)], [node(4)], [4]),
        ([claim(9), claim(9)], [node(4)], [2, 2]),
        ([claim(9), claim(9)], [node(5)], [3, 2]),  # by turns, the first one first
        ([claim(1), claim(9)], [node(5)], [1, 4]),  # what one does not need the other has
        ([claim(0), claim(9)], [node(5)], [0, 5]),
        ([claim(9, cpus=3), claim(9)], [node(2), node(2)], [0, 4]),  # together 4, but no 3 on one node
        ([claim(9, gpus=1), claim(9, gpus=1)], [node(8, 1), node(8)], [1, 0]),
        ([claim(9, **PACKED), claim(9)], [node(4), node(3)], [1, 3]),
        ([claim(9, **PACKED)], [node(3), node(3)], [0]),  # shards that are packed lie on one node
        ([claim(9, **PACKED, placement="spread")], [node(3), node(3)], [1]),
        # A part of a gang that does not fit as a whole takes no room.
        ([claim(9, kind="sharded", shards=3, cpus=2, placement="spread"), claim(9)], [node(2), node(2)], [0, 4]),
    ],
)
def test_models_share_room_by_turns(claims: list[Claim], nodes: list[dict[str, float]], shares: list[int]) -> None:
    assert share_room(claims, nodes) == shares


@pytest.mark.parametrize(
    ("claims", "shares"),
    [
        ([claim(1, 100 * GB)], [1]),  # Ray knows nothing of it, and does not refuse a model that is alone
        ([claim(4, 30 * GB)], [3]),  # its first one does not count, which nobody has to share with
        ([claim(4, 30 * GB), claim(4, 30 * GB)], [2, 1]),
        ([claim(1, 100 * GB), claim(1, 100 * GB)], [1, 0]),
        ([claim(2, 10 * GB, memory="60GB"), claim(2, 10 * GB)], [1, 0]),  # what is set aside counts in any case
    ],
)
def test_memory_of_weights_counts_where_it_is_shared(claims: list[Claim], shares: list[int]) -> None:
    assert share_room(claims, [node(8)]) == shares


ASKED = st.one_of(
    st.fixed_dictionaries(
        {"cpus": st.sampled_from([0.5, 1, 3]), "gpus": st.sampled_from([0, 0.5, 1])},
        optional={"memory": st.sampled_from([GB, 40 * GB])},
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("sharded"),
            "shards": st.integers(2, 3),
            "cpus": st.sampled_from([1, 2]),
            "placement": st.sampled_from(["pack", "spread"]),
        }
    ),
)
CLAIMS = st.lists(
    st.builds(
        lambda asked, count, size: claim(count, size * GB, **asked), ASKED, st.integers(0, 4), st.integers(0, 30)
    ),
    max_size=4,
)
NODES = st.lists(st.builds(node, st.integers(0, 8), st.integers(0, 2)), max_size=4)


@given(CLAIMS, NODES)
def test_what_is_shared_fits_and_nobody_has_more_than_it_claims(
    claims: list[Claim], nodes: list[dict[str, float]]
) -> None:
    shares = share_room(claims, nodes)
    assert all(0 <= share <= claim.count for share, claim in zip(shares, claims, strict=True))
    taken: dict[str, float] = {}
    for share, shared in zip(shares, claims, strict=True):
        assert share <= room_for(Demand.of(shared.workers), nodes), "alone it fits too"
        for name, amount in actor_resources(shared.workers).items():
            taken[name] = taken.get(name, 0.0) + amount * shared.workers.actors * share
    for name, amount in taken.items():
        assert amount <= sum(node.get(name, 0.0) for node in nodes) + ROUNDING


@given(CLAIMS)
def test_where_there_is_plenty_everybody_has_what_it_claims(claims: list[Claim]) -> None:
    plenty = [node(100, 100, 10**14) for _ in range(4)]
    assert share_room(claims, plenty) == [claim.count for claim in claims]


@given(claim=CLAIMS.filter(bool).map(lambda claims: claims[0]), others=CLAIMS, nodes=NODES)
def test_the_first_model_has_a_worker_if_it_had_one_alone(
    claim: Claim, others: list[Claim], nodes: list[dict[str, float]]
) -> None:
    alone, shared = share_room([claim], nodes)[0], share_room([claim, *others], nodes)[0]
    assert (shared > 0) == (alone > 0)
