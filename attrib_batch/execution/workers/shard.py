"""The worker that owns one tensor-parallel shard of a model, a rank of its gang.

Every rank reads the same tasks and runs the same micro-batches; the first one commits. A rank that left the common path
would leave the others waiting in a collective, so what one meets alone (an exception, memory that ran out) ends the
gang, within the time collectives are given.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from attrib_batch.execution.imports import collector_paused
from attrib_batch.execution.workers.machine import computing
from attrib_batch.execution.workers.scoring import score_task
from attrib_batch.execution.workers.task import LoadReport, TaskReader, TaskReport, peak_memory
from attrib_batch.models.arithmetic import describe_arithmetic
from attrib_batch.models.devices import prepare_environment
from attrib_batch.models.meeting import listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from attrib_batch.attribution.engine import Outcome
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.pairs.encoding.encode import EncodedPair
    from attrib_batch.spec import MethodSpec, ModelSpec


@dataclass
class ShardWorker:
    """Owns one shard of a model in one process."""

    model_spec: ModelSpec
    methods: tuple[MethodSpec, ...]
    """Those of the job: their metrics are tried once the model is there."""
    rank: int
    ran_out: int = 0
    """How many gangs before this one ended because memory ran out: each halved what a micro-batch may hold."""
    _listener: socket.socket | None = field(default=None, init=False, repr=False)

    def listen(self, address: str) -> int:
        """Listen for the other ranks at an address of this machine, until `load`; return the port.

        It is held from here on: a port that were only looked up could be another gang's by the time it is used.
        """
        self._listener = listen(address)
        return int(self._listener.getsockname()[1])

    def load(self, meeting_point: tuple[str, int]) -> LoadReport:
        """Meet the other ranks and load this one's shard.

        Raises:
            ModelError: the model cannot be loaded, or not into so many shards.
            JobError: a metric of one's own cannot be used here.
            ShardGroupError: the ranks did not meet in time.
        """
        started = time.perf_counter()
        workers = self.model_spec.workers
        prepare_environment(self.model_spec, os.environ, gpus=workers.gpus)
        with collector_paused(keep=True):
            import torch

            from attrib_batch.attribution.memory import budget_for
            from attrib_batch.attribution.metrics import try_metrics
            from attrib_batch.models.ranks import join_ranks
            from attrib_batch.models.sharded import load_shard, parameters_here

        torch.set_num_threads(max(1, int(workers.cpus)))
        timeout = timedelta(seconds=workers.collective_seconds or 0)
        listener, self._listener = self._listener, None
        self._agreement = join_ranks(self.rank, workers.actors, *meeting_point, timeout=timeout, listener=listener)
        with computing(self.model_spec):
            self._model = load_shard(self.model_spec, workers.actors, gpus=workers.gpus)
        try_metrics(self.methods, self._model.dimensions.d_vocab)
        share = self._model.memory_share
        if self._model.device.type == "cpu":
            share = min(1.0, workers.cpus / (os.cpu_count() or 1))
        self._budget = budget_for(
            self.model_spec.batch_tokens,
            self._model.device,
            share=share,
            ran_out=self.ran_out,
            agreed=self._agreement.largest,
        )
        self._reader = TaskReader(self.model_spec, self._model)
        return LoadReport(
            peak_memory(),
            parameters_here(self._model),
            time.perf_counter() - started,
            describe_arithmetic(self._model.device, deterministic=self.model_spec.deterministic),
        )

    def score(self, assignment: Assignment, work: StageWork) -> TaskReport | None:
        """Score chunks of the same pairs, one for each method; the first rank commits them and reports.

        Raises:
            TaskError: pairs ended in an exception that is no pair's fault, in all ranks, or this rank's device is lost;
                nothing is committed.
            ShardsDisagreeError: the ranks did not all go the same way.
            ShardsOutOfMemoryError: the same, because memory ran out in some of them.
            DatasetError: the pairs cannot be read.
            OutputError: the tables cannot be written.
        """
        from attrib_batch.attribution.engine import score_pairs

        started = time.perf_counter()
        pairs, results = self._reader.begin(assignment, work)
        means = self._reader.means(assignment, work)

        def score(pairs: Sequence[EncodedPair]) -> Iterator[tuple[MethodSpec, Outcome]]:
            budget = self._budget.halved(assignment.halvings)
            agree = self._agreement.agree
            return score_pairs(self._model, pairs, results.methods, budget, agree=agree, means=means)

        scoring = time.perf_counter()
        with computing(self.model_spec):
            score_task(assignment, pairs, results, score)
        now = time.perf_counter()
        if self.rank != 0:
            return None
        return results.commit(work.store, seconds=now - started, model_seconds=now - scoring)
