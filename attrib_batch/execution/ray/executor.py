"""Workers as actors of a Ray cluster: replicas, gangs of shards, sessions with an NDIF server.

Nothing is decided here. Workers are never restarted by Ray itself.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from attrib_batch.errors import ShardsOutOfMemoryError
from attrib_batch.execution.events import (
    TaskDone,
    TaskUnreadable,
    WorkerFailedToStart,
    WorkerLost,
    WorkerPlaced,
    WorkerReady,
)
from attrib_batch.execution.executor import judge
from attrib_batch.execution.ray.capacity import (
    Claim,
    ClusterRoom,
    Queue,
    alive_nodes,
    check_capacity,
    cluster_grows,
    free_resources,
    nodes_are_starting,
    share_room,
)
from attrib_batch.execution.ray.gangs import TASKS_IN_HAND, start_gang
from attrib_batch.execution.ray.head import SHUTDOWN_SECONDS, HeadWatch
from attrib_batch.execution.ray.metrics import RunMetrics
from attrib_batch.execution.ray.start import join_ray, prepare_environment, start_ray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.execution.events import Event, WorkerId
    from attrib_batch.execution.executor import Demand
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.ray.gangs import Gang
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.spec import ModelSpec

STOP_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class _Call:
    """A request to a gang; it is done when every actor has answered."""

    worker: WorkerId
    assignment: Assignment | None
    """None: to be placed, or to load."""
    references: list[Any]
    waiting: set[Any]
    loads: bool = False
    """Whether it is to load."""


@dataclass
class RayExecutor:
    """Owns the actors of an execution, in a cluster that is joined or started for it."""

    address: str | None = None
    """The cluster's head as host:port, or auto; None starts Ray on this machine."""
    depth: int = field(default=TASKS_IN_HAND, init=False)
    ends_hung_workers: bool = field(default=True, init=False)
    grace_seconds: float = field(default=STOP_GRACE_SECONDS, init=False)
    run_id: str = field(default="", init=False)
    """The run's id, which metrics carry."""
    _grows: bool | None = field(default=None, init=False)
    _owns_ray: bool = field(default=False, init=False)
    _head: HeadWatch = field(init=False)
    _rooms: dict[str, ClusterRoom] = field(default_factory=dict, init=False)
    _queues: dict[str, Queue] = field(default_factory=dict, init=False)
    _metrics: dict[str, RunMetrics] = field(default_factory=dict, init=False)
    _ran_out: Counter[str] = field(default_factory=Counter, init=False)
    """How many gangs of shards of each model ended because memory ran out; the next ones are more careful."""
    _gangs: dict[WorkerId, Gang] = field(default_factory=dict, init=False)
    _calls: dict[Any, _Call] = field(default_factory=dict, init=False)

    @property
    def workers_here(self) -> bool:
        """Whether the workers run on this machine."""
        return self.address is None

    def __enter__(self) -> Self:
        """Start Ray or join a cluster, unless this process belongs to one; watch its head.

        Raises:
            RequestError: Ray is to be started, and its folder for temporary files does not allow that.
            RunInterruptedError: there is no cluster at the address, or Ray does not start.
        """
        prepare_environment(starts=self.address is None)
        import ray

        if not ray.is_initialized():
            if self.address is None:
                start_ray()
            else:
                join_ray(self.address)
            self._owns_ray = True
        self._head = HeadWatch(ray.get_runtime_context().gcs_address).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker, and leave the cluster unless this process belonged to it before."""
        import ray

        if not self._head.lost:  # without it nothing can be ended, and to try may take for ever
            for worker in list(self._gangs):
                self.end(worker)
        if self._owns_ray and self._head.lost:  # it may wait for it
            ended = threading.Thread(target=ray.shutdown, name="shutdown", daemon=True)
            ended.start()
            ended.join(SHUTDOWN_SECONDS)
        elif self._owns_ray:
            ray.shutdown()
        self._head.__exit__()

    def check(self) -> None:
        """Raise RunInterruptedError if the cluster's head is lost."""
        self._head.check()

    def allot(self, demands: Sequence[Demand]) -> Mapping[str, int]:
        """Return how many workers each model is to have now; see `Executor.allot`.

        A model alone has as many as it asks for. Several share what the nodes have.
        """
        wanted = {}
        for demand in demands:
            room = self._room(demand)
            room.most = max(room.most, demand.open_tasks)
            room.changed()
            wanted[demand.model.name] = room.wanted
        if len(demands) < 2 or self._cluster_grows():  # an autoscaler makes room for workers that wait
            return wanted
        claims = [
            Claim(demand.model.workers, min(wanted[demand.model.name], demand.open_tasks), demand.weight_bytes)
            for demand in demands
        ]
        shares = share_room(claims, self._rooms[demands[0].model.name].seen)
        return {demand.model.name: share for demand, share in zip(demands, shares, strict=True)}

    def waiting(self, model: ModelSpec, n_unplaced: int) -> str | None:
        """Return a message about workers that wait for room; see `Executor.waiting`."""
        queue = self._queues.setdefault(model.name, Queue(model.workers, free=lambda: self._head.ask(free_resources)))
        return queue.announce(n_unplaced)

    def start(self, worker: WorkerId, model: ModelSpec, work: StageWork) -> None:
        """Start a worker; it loads its model as soon as Ray has placed it."""
        ran_out = self._ran_out[model.name]
        self._gangs[worker] = gang = self._head.ask(lambda: start_gang(model, work.spec.methods, ran_out=ran_out))
        self._call(worker, None, gang.placed())

    def give(self, worker: WorkerId, assignment: Assignment, work: StageWork) -> None:
        """Give a worker something to do."""
        self._call(worker, assignment, self._gangs[worker].score(assignment, work))

    def end(self, worker: WorkerId) -> None:
        """End a worker, whatever it is doing; no event of it follows."""
        self._gangs.pop(worker).end()
        for reference in [reference for reference, call in self._calls.items() if call.worker == worker]:
            del self._calls[reference]

    def wait(self, seconds: float) -> list[Event]:
        """Return the next events; see `Executor.wait`."""
        import ray

        if not self._calls:
            return []
        finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        # A reference may belong to a worker that an earlier one showed to be lost.
        settled = (self._settle(reference) for reference in finished if reference in self._calls)
        events = [event for events in settled for event in events]
        for event in events:
            if isinstance(event, TaskDone):
                self._metrics_of(event.worker.model).committed(event.worker.number, event.report)
        return events

    def pairs_in_hand(self) -> int:
        """Return 0: workers report whole tasks alone."""
        return 0

    def given_up(self, model: str, n_pairs: int) -> None:
        """Count pairs that the driver committed to failures itself, for Prometheus."""
        self._metrics_of(model).given_up(n_pairs)

    def _room(self, demand: Demand) -> ClusterRoom:
        name, workers = demand.model.name, demand.model.workers
        if name not in self._rooms:
            ask = self._head.ask
            room = ClusterRoom(
                workers,
                demand.open_tasks,
                nodes=lambda: ask(alive_nodes),
                starting=lambda: ask(nodes_are_starting),
                grows=lambda: ask(cluster_grows),
            )
            ask(lambda: check_capacity(workers, room.wanted))
            self._rooms[name] = room
        return self._rooms[name]

    def _cluster_grows(self) -> bool:
        if self._grows is None:
            self._grows = self._head.ask(cluster_grows)
        return self._grows

    def _metrics_of(self, model: str) -> RunMetrics:
        if model not in self._metrics:
            self._metrics[model] = RunMetrics(self.run_id, model)
        return self._metrics[model]

    def _call(
        self, worker: WorkerId, assignment: Assignment | None, references: list[Any], *, loads: bool = False
    ) -> None:
        call = _Call(worker, assignment, references, set(references), loads)
        self._calls.update(dict.fromkeys(references, call))

    def _settle(self, reference: Any) -> list[Event]:
        """Return the events that the answer of one actor completes; none while others of its gang are to answer."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call = self._calls.pop(reference)
        try:
            ray.get(reference)
        except RayTaskError as error:
            # The worker's own exception: it is alive, but nothing says in what state.
            return self._raised(call, error.cause)
        except RayError as error:
            return self._lost(call, f"{type(error).__name__}: {' '.join(str(error).split())}")
        call.waiting.remove(reference)
        if call.waiting:
            return []
        answer = ray.get(call.references[0])
        if call.assignment is not None:
            return [TaskDone(call.worker, answer)]
        if call.loads:
            return [WorkerReady(call.worker, answer)]
        self._call(call.worker, None, self._gangs[call.worker].load(), loads=True)
        return [WorkerPlaced(call.worker)]

    def _raised(self, call: _Call, cause: BaseException) -> list[Event]:
        if isinstance(cause, ShardsOutOfMemoryError):
            self._ran_out[call.worker.model] += 1
        event = judge(cause, call.worker, call.assignment)
        if not isinstance(event, TaskUnreadable):
            self.end(call.worker)  # a fresh one may do better
            return [event]
        if len(call.references) == 1:
            return [event]
        # The other ranks may have read what this one could not, and wait for it.
        return [event, *self._lost(call, event.message)]

    def _lost(self, call: _Call, message: str) -> list[Event]:
        """End a worker: one that is only out of reach could otherwise finish its task a second time."""
        self.end(call.worker)
        if call.assignment is None:
            return [WorkerFailedToStart(call.worker, message)]
        return [WorkerLost(call.worker, message)]
