"""What workers ask for and what Ray's nodes have: how many fit, what to say when none does, and when to wait.

A worker fits when every actor of it fits on one node; the shards of a packed gang must fit on one node together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import RequestError, RunInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from attrib_batch.spec import WorkersSpec

    Node = Mapping[str, float]

LOOK_SECONDS = 3.0
"""How often the nodes are looked at while a run goes on."""
FIRST_NODE_SECONDS = 60.0
"""How long a run without a worker waits when no node that could hold one is on its way."""
NEXT_NODE_SECONDS = 1800.0
"""How long it waits when there was one before: whoever took it may give it back."""
UNPLACED_SECONDS = 45.0
"""How long workers wait for room before that is said."""
ROUNDING = 1e-6
"""Ray counts resources in steps of 1e-4; sums of binary fractions are off by much less."""


@dataclass(frozen=True)
class Demand:
    """What the actors of one worker ask for."""

    each: dict[str, float]
    """What has to be on one node."""
    times: int
    """How often; the parts may lie on different nodes."""

    @classmethod
    def of(cls, workers: WorkersSpec) -> Demand:
        """Return what a worker of this kind asks for."""
        if workers.placement == "pack":
            return cls({name: amount * workers.actors for name, amount in actor_resources(workers).items()}, 1)
        return cls(actor_resources(workers), workers.actors)


def actor_resources(workers: WorkersSpec) -> dict[str, float]:
    """Return what one actor asks for, by Ray's names; a resource of which it needs none is left out."""
    asked = {"CPU": workers.cpus, "GPU": workers.gpus, "memory": float(workers.memory or 0), **workers.resources}
    return {name: amount for name, amount in asked.items() if amount}


def room_for(demand: Demand, nodes: Sequence[Node]) -> int:
    """Return how many workers fit on nodes that nobody else uses."""
    parts = sum(
        int(min(node.get(name, 0.0) / amount for name, amount in demand.each.items()) + ROUNDING) for node in nodes
    )
    return parts // demand.times


def shortage(workers: WorkersSpec, count: int, nodes: Sequence[Node]) -> str:
    """Explain why ``count`` workers do not fit: what is asked, what is there, what to change."""
    for name, amount in actor_resources(workers).items():
        asked, there = amount * workers.actors * count, sum(node.get(name, 0.0) for node in nodes)
        if asked > there + ROUNDING:
            shards = f" of {workers.actors} shards each" if workers.actors > 1 else ""
            return (
                f"{count} workers{shards} ask for {_amount(name, asked)} together, and Ray has "
                f"{_number(name, there)}. Lower workers.count or what each one asks for."
            )
    demand = Demand.of(workers)
    for name, amount in demand.each.items():
        largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > largest + ROUNDING:
            packed = workers.placement == "pack"
            return (
                f"{f'{workers.actors} shards ask' if packed else 'an actor asks'} for {_amount(name, amount)} on one "
                f"node, and the largest has {_number(name, largest)}. "
                + (f"Use placement: spread, or fewer {_unit(name)} for each shard." if packed else "Ask for less.")
            )
    return (
        f"{count} workers do not fit: {_asked_and_there(workers, nodes)}: room for {room_for(demand, nodes)} workers. "
        "Lower workers.count or what each one asks for."
    )


def _asked_and_there(workers: WorkersSpec, nodes: Sequence[Node]) -> str:
    demand = Demand.of(workers)
    unit = "a gang" if workers.placement == "pack" else "an actor"
    asks = _amounts(demand.each)
    have = "; ".join(_amounts({name: node.get(name, 0.0) for name in demand.each}) for node in nodes)
    return f"on one node {unit} asks for {asks}, and the nodes have {have or 'nothing'}"


@dataclass(frozen=True)
class Claim:
    """Workers that a model is to have, if there is room."""

    workers: WorkersSpec
    count: int
    bytes_each: int = 0
    """What its weights take in memory, as far as it is known: not set aside in Ray, and yet used."""


def share_room(claims: Sequence[Claim], nodes: Sequence[Node]) -> list[int]:
    """Share the nodes among models that are worked on side by side: one worker each in turn, as long as one fits.

    Memory that weights take without being set aside counts where it would be shared: a model alone is not refused.

    Returns:
        How many workers each is to have, possibly none.
    """
    free = [dict(node) for node in nodes]
    shares = [0] * len(claims)
    placed = True
    while placed:
        placed = False
        for index, claim in enumerate(claims):
            if shares[index] < claim.count and _place(claim, free, careful=any(shares)):
                shares[index] += 1
                placed = True
    return shares


def _place(claim: Claim, free: list[dict[str, float]], *, careful: bool) -> bool:
    """Take the room of one worker from ``free``; return False, and take nothing, where it does not fit."""
    demand = Demand.of(claim.workers)
    each = dict(demand.each)
    if careful and "memory" not in each:
        each["memory"] = float(claim.bytes_each)
    trial = [dict(node) for node in free]
    for _ in range(demand.times):
        fits = (
            node for node in trial if all(node.get(name, 0.0) + ROUNDING >= amount for name, amount in each.items())
        )
        if (node := next(fits, None)) is None:
            return False
        for name, amount in each.items():
            node[name] = node.get(name, 0.0) - amount
    free[:] = trial
    return True


def check_capacity(workers: WorkersSpec, count: int) -> None:
    """Check that ``count`` workers fit; a cluster that an autoscaler grows is left to ``ClusterRoom``.

    Raises:
        RequestError: they do not fit; the message says what is asked and what is there.
    """
    nodes = alive_nodes()
    if room_for(Demand.of(workers), nodes) < count and not cluster_grows():
        raise RequestError(shortage(workers, count, nodes))


@dataclass
class ClusterRoom:
    """Watches the nodes of a run: how many workers are wanted now, and whether any can ever be placed."""

    workers: WorkersSpec
    most: int
    """More are never of use."""
    nodes: Callable[[], Sequence[Node]] = field(default_factory=lambda: alive_nodes)
    starting: Callable[[], bool] = field(default_factory=lambda: nodes_are_starting)
    grows: Callable[[], bool] = field(default_factory=lambda: cluster_grows)
    wanted: int = field(init=False)
    """How many workers there are to be now."""
    seen: Sequence[Node] = field(default=(), init=False)
    """The nodes, as they were at the last look."""
    _grows: bool = field(init=False)
    _next_look: float = field(default=0.0, init=False)
    _without_room_since: float | None = field(default=None, init=False)
    _ever_had_room: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._grows = self.workers.count == "auto" and self.grows()
        self.wanted = self._count(self._room())

    def changed(self) -> bool:
        """Look at the nodes if it is time to; return whether another number of workers is wanted now.

        Raises:
            RequestError: no worker was ever placed, and nothing comes that could hold one.
            RunInterruptedError: the nodes that could hold one are gone and do not come back.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        room = self._room()
        self._check_room(room, now)
        before, self.wanted = self.wanted, self._count(room)
        return self.wanted != before

    def _count(self, room: int) -> int:
        """Return how many workers are wanted while there is room for ``room``."""
        if self.workers.count != "auto":
            return min(self.workers.count, self.most)
        # An autoscaler starts nodes for workers that wait for one: so there are always some, more as it grows.
        waiting = max(1, room // 2) if self._grows else 0
        return max(1, min(room + waiting, self.most))

    def _room(self) -> int:
        self.seen = self.nodes()
        return room_for(Demand.of(self.workers), self.seen)

    def _check_room(self, room: int, now: float) -> None:
        if room or self.starting():
            self._without_room_since = None
            self._ever_had_room = self._ever_had_room or room > 0
            return
        if self._without_room_since is None:
            self._without_room_since = now
        waited = now - self._without_room_since
        if self._ever_had_room and waited >= NEXT_NODE_SECONDS:
            raise RunInterruptedError(
                f"for {waited / 60:.0f} minutes no node could hold a worker: "
                f"{_asked_and_there(self.workers, self.nodes())}. "
                "What is committed stays; the same command goes on from there."
            )
        if not self._ever_had_room and waited >= FIRST_NODE_SECONDS:
            raise RequestError(
                f"no worker fits, and in {waited:.0f} s the cluster added no node for one: "
                f"{_asked_and_there(self.workers, self.nodes())}. Ask for what its nodes can have."
            )


@dataclass
class Queue:
    """Announces workers that wait for room that others use."""

    workers: WorkersSpec
    free: Callable[[], Sequence[Node]] = field(default_factory=lambda: free_resources)
    _since: float | None = field(default=None, init=False)
    _announced: bool = field(default=False, init=False)

    def announce(self, n_unplaced: int) -> str | None:
        """Return a message about waiting workers once, after some have waited for a while; None at other times."""
        if not n_unplaced:
            self._since, self._announced = None, False
            return None
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if self._announced or now - self._since < UNPLACED_SECONDS:
            return None
        self._announced = True
        return _waiting(self.workers, n_unplaced, self.free())


def _waiting(workers: WorkersSpec, count: int, free: Sequence[Node]) -> str:
    """Say why workers have not started, by what each node has free."""
    demand = Demand.of(workers)
    total = {name: sum(node.get(name, 0.0) for node in free) for name in demand.each}
    asks = _amounts(demand.each)
    if workers.placement == "pack":
        asks = f"a gang of {workers.actors} shards asks for {asks} on one node"
    elif workers.actors > 1:
        asks = f"each of a gang's {workers.actors} shards asks for {asks}"
    else:
        asks = f"an actor asks for {asks}"
    reason = f"{asks}, and free in the whole cluster are {_amounts(total)}"
    fits = room_for(demand, free)
    if fits >= count:
        return (
            f"{count} workers have not started, though there is room: {reason}. On a busy machine Ray takes its time; "
            "if this lasts, Ray's logs say why: raylet.out and worker-*.err in session_latest/logs, below its folder "
            "for temporary files (/tmp/ray by default)."
        )
    if fits:
        reason += f": there is room for {fits}"
    elif all(total[name] + ROUNDING >= amount * demand.times for name, amount in demand.each.items()):
        reason += ", but in pieces on several nodes: no node has enough of it"
    return f"{count} workers wait for room: {reason}. They start when there is room."


def free_resources() -> list[Node]:
    """Return the resources that nobody uses now, by node."""
    # Ray's own answer for the whole cluster is the sum of these, and has no public form by node.
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def alive_nodes() -> list[Node]:
    """Return what each node of the cluster has, used or not.

    Raises:
        RunInterruptedError: the node that this process belongs to is dead, and Ray ends whatever it starts.
    """
    import ray

    nodes, mine = ray.nodes(), ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == mine and not node["Alive"] for node in nodes):
        raise RunInterruptedError(
            "the Ray node that this driver belongs to is gone (its raylet has ended, or the cluster has lost sight of "
            "it). What is committed stays; with Ray again on this machine, the same command goes on from there."
        )
    return [node["Resources"] for node in nodes if node["Alive"]]


def cluster_grows() -> bool:
    """Return whether an autoscaler starts this cluster's nodes: their types have names then."""
    # Ray makes up a name from the id for a node that was started by hand.
    return any(not name.startswith("node_") for name in _node_types())


def nodes_are_starting() -> bool:
    """Return whether an autoscaler has asked for nodes that are not here yet."""
    status = _status()
    return bool(status.pending_launches or status.pending_nodes)


def _node_types() -> list[str]:
    status = _status()
    return [node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes]]


def _status() -> Any:
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    return get_cluster_status(ray.get_runtime_context().gcs_address)


def _amounts(resources: Node) -> str:
    return ", ".join(_amount(name, amount) for name, amount in resources.items())


def _unit(name: str) -> str:
    return {"CPU": "CPUs", "GPU": "GPUs"}.get(name, name)


def _number(name: str, amount: float) -> str:
    return f"{amount / 1e9:.3g} GB" if name == "memory" else f"{amount:g}"


def _amount(name: str, amount: float) -> str:
    return f"{_number(name, amount)} {'of ' if name == 'memory' else ''}{_unit(name)}"
