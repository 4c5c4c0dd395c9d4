"""The worker that owns a whole model: it takes tasks, scores them and commits them itself.

The class is plain; the pool makes a Ray actor of it. No score passes through Ray: a worker returns counts.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.execution.imports import collector_paused
from attrib_batch.execution.workers.machine import computing
from attrib_batch.execution.workers.scoring import score_task
from attrib_batch.execution.workers.task import (
    LoadReport,
    TaskReader,
    TaskReport,
    on_batch_ignored,
    peak_memory,
    watched,
)
from attrib_batch.models.arithmetic import describe_arithmetic
from attrib_batch.models.devices import prepare_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from attrib_batch.attribution.engine import Outcome
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.workers.task import OnBatch
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair
    from attrib_batch.spec import MethodSpec, ModelSpec


@dataclass
class ReplicaWorker:
    """Owns one model in one process."""

    model_spec: ModelSpec
    methods: tuple[MethodSpec, ...]
    """Those of the job: their metrics are tried once the model is there."""
    given: LoadedModel | None = None
    """The model, where it is in memory already."""
    shares_process: bool = False
    """Whether others compute in this process too, so that the number of its threads is theirs."""

    def load(self) -> LoadReport:
        """Load the model.

        A method, not the constructor: what it raises then reaches the driver as it is.

        Raises:
            ModelError: it cannot be loaded.
            JobError: a metric of one's own cannot be used here.
        """
        started = time.perf_counter()
        # Ray gives GPUs out; in a process that others share, whatever is there may be taken.
        gpus = None if self.shares_process else self.model_spec.workers.gpus
        prepare_environment(self.model_spec, os.environ, gpus=gpus)
        with collector_paused(keep=not self.shares_process):
            import torch

            from attrib_batch.attribution.memory import budget_for
            from attrib_batch.attribution.metrics import try_metrics
            from attrib_batch.models.load import load_model

            if not self.shares_process:
                torch.set_num_threads(max(1, int(self.model_spec.workers.cpus)))
            with computing(self.model_spec, shares_process=self.shares_process):
                self._model = self.given or load_model(self.model_spec, gpus=gpus)
        try_metrics(self.methods, self._model.dimensions.d_vocab)
        self._budget = budget_for(self.model_spec.batch_tokens, self._model.device, share=self._share())
        self._reader = TaskReader(self.model_spec, self._model)
        # Two tasks may be in hand, each in a thread: one is read or written while the other computes.
        self._scoring = threading.Lock()
        return LoadReport(
            peak_memory(),
            parameters=sum(parameter.numel() for parameter in self._model.module.parameters()),
            seconds=time.perf_counter() - started,
            arithmetic=describe_arithmetic(self._model.device, deterministic=self.model_spec.deterministic),
        )

    def _share(self) -> float:
        """Return the part of its GPU, or of the machine's memory, that is this worker's."""
        if self._model.device.type == "cuda":
            return self._model.memory_share
        # Workers of a machine take its processors, and as large a part of its memory.
        return 1.0 if self.shares_process else min(1.0, self.model_spec.workers.cpus / (os.cpu_count() or 1))

    def loaded(self) -> LoadedModel | None:
        """Return the model if it is loaded, for the next worker in this process."""
        return getattr(self, "_model", None)

    def score(self, assignment: Assignment, work: StageWork, on_batch: OnBatch = on_batch_ignored) -> TaskReport:
        """Score and commit chunks of the same pairs, one for each method; every pair ends in scores or failures.

        A probe is scored and not committed.

        Raises:
            TaskError: pairs ended in an exception that is no pair's fault, or the device is lost; nothing is committed.
            DatasetError: the pairs cannot be read.
            OutputError: the tables cannot be written.
            RunInterruptedError: the device is lost to a process that others share.
        """
        from attrib_batch.attribution.engine import score_pairs

        started = time.perf_counter()
        pairs, results = self._reader.begin(assignment, work)
        means = self._reader.means(assignment, work)

        def score(pairs: Sequence[EncodedPair]) -> Iterator[tuple[MethodSpec, Outcome]]:
            budget = self._budget.halved(assignment.halvings)
            return watched(score_pairs(self._model, pairs, results.methods, budget, means=means), on_batch)

        with self._scoring, computing(self.model_spec, shares_process=self.shares_process):
            scoring = time.perf_counter()
            score_task(assignment, pairs, results, score)
            model_seconds = time.perf_counter() - scoring
        return results.commit(work.store, seconds=time.perf_counter() - started, model_seconds=model_seconds)
