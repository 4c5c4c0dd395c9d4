"""The Ray actors of one worker: started together, given the same tasks, ended together.

A replica or an NDIF session is a gang of one. The shards of a model are one gang: each answer needs all of them, and
when one is lost the others would wait for it, so they go with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.ray.capacity import actor_resources
from attrib_batch.ndif.keys import ndif_key

if TYPE_CHECKING:
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.workers.shard import ShardWorker
    from attrib_batch.spec import MethodSpec, ModelSpec, WorkersSpec

TASKS_IN_HAND = 2
"""Tasks a worker holds at once: it reads and writes one while it computes the other."""


@dataclass(frozen=True)
class Gang:
    """The actors of one worker; the first one's answer is the worker's."""

    actors: list[Any]
    group: Any = None
    """The placement group that holds them, if they share one."""

    def placed(self) -> list[Any]:
        """Return a reference for each actor, ready when its process runs; Ray may have no room for it for long."""
        return [actor.__ray_ready__.remote() for actor in self.actors]

    def load(self) -> list[Any]:
        """Ask every actor to load; return a reference to each answer."""
        if self.group is None:
            return [actor.load.remote() for actor in self.actors]
        meeting_point = self.actors[0].__ray_call__.remote(_meeting_point)
        return [actor.load.remote(meeting_point) for actor in self.actors]

    def score(self, assignment: Assignment, work: StageWork) -> list[Any]:
        """Give every actor something to do; return a reference to each answer."""
        return [actor.score.remote(assignment, work) for actor in self.actors]

    def end(self) -> None:
        """End every actor, whatever it does."""
        import ray

        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        if self.group is not None:
            ray.util.remove_placement_group(self.group)


def start_gang(model: ModelSpec, methods: tuple[MethodSpec, ...], *, ran_out: int = 0) -> Gang:
    """Start the actors of one worker of a model.

    Args:
        model: the model's part of the job.
        methods: the job's.
        ran_out: how many gangs of the model ended before because memory ran out in some of their shards.
    """
    if model.workers.kind == "sharded":
        return _start_shards(model, methods, ran_out)
    import ray

    if model.workers.kind == "ndif":
        from attrib_batch.execution.workers.session import NdifWorker

        # Handed over as an argument that no message shows; what runs in the actor's environment is listed by Ray.
        key = ndif_key(os.environ)
        actor = ray.remote(NdifWorker).options(**_options(model.workers)).remote(model, methods, key)
    else:
        from attrib_batch.execution.workers.replica import ReplicaWorker

        actor = ray.remote(ReplicaWorker).options(**_options(model.workers)).remote(model, methods)
    return Gang([actor])


def _start_shards(model: ModelSpec, methods: tuple[MethodSpec, ...], ran_out: int) -> Gang:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from attrib_batch.execution.workers.shard import ShardWorker

    workers = model.workers
    group = ray.util.placement_group(
        [actor_resources(workers)] * workers.actors, strategy="STRICT_PACK" if workers.placement == "pack" else "SPREAD"
    )
    actors = [
        ray.remote(ShardWorker)
        .options(
            **_options(workers) | {"max_concurrency": 1},  # tasks must run in one order on every rank
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote(model, methods, rank, ran_out)
        for rank in range(workers.actors)
    ]
    return Gang(actors, group)


def _meeting_point(first: ShardWorker) -> tuple[str, int]:
    """Have the first rank listen on its node's address; return that address and the port."""
    import ray

    address = ray.util.get_node_ip_address()
    return address, first.listen(address)


def _options(workers: WorkersSpec) -> dict[str, Any]:
    # Ray restarts nothing by itself: an actor that comes back alone may run a task twice.
    return {
        "num_cpus": workers.cpus,
        "num_gpus": workers.gpus,
        "memory": workers.memory,
        "resources": dict(workers.resources),
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": TASKS_IN_HAND,
    }
