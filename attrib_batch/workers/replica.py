"""The worker that owns a whole model: it takes chunks, scores them and commits them itself.

The class is plain; the driver makes a Ray actor of it. No score passes through Ray: a worker returns counts.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attrib_batch.pairs.encode import EncodedPair, PairProblem, encode_pairs
from attrib_batch.pairs.reader import PairTable
from attrib_batch.schema import Chunk, Stage
from attrib_batch.workers.commit import commit_chunk
from attrib_batch.workers.tables import baseline_rows, failure_rows, score_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.attribution.engine import Outcome, ScoredBatch
    from attrib_batch.spec import Job
    from attrib_batch.store import Store


@dataclass(frozen=True)
class TaskReport:
    """What a worker tells the driver about the committed chunks of a task."""

    task: tuple[Chunk, ...]
    n_scored: int
    n_failed: int
    score_rows: int
    score_bytes: int
    tokens: int
    """Prompt positions of the scored pairs, clean and corrupted."""
    seconds: float
    model_seconds: float
    """Seconds inside scoring; the rest is reading, tokenising, building columns and writing."""
    peak_bytes: int
    """The worker's peak resident memory so far."""


@dataclass
class ReplicaWorker:
    """Owns one model in one process."""

    job: Job
    model_name: str
    store: Store
    _tables: dict[str, PairTable] = field(default_factory=dict, init=False, repr=False)

    # Two chunks may be in hand, each in a thread: one is read or written while the other computes.
    _reading: threading.Lock = field(init=False, repr=False)
    _scoring: threading.Lock = field(init=False, repr=False)

    def load(self) -> int:
        """Load the model; returns the worker's peak resident memory in bytes.

        A method, not the constructor: what it raises then reaches the driver as it is.

        Raises:
            ModelError: it cannot be loaded.
        """
        import torch

        from attrib_batch.attribution.engine import TokenBudget
        from attrib_batch.models.load import load_model

        self._model_job = self.job.model(self.model_name)
        torch.set_num_threads(max(1, int(self._model_job.workers.cpus)))
        self._reading, self._scoring = threading.Lock(), threading.Lock()
        self._model = load_model(self._model_job)
        self._budget = TokenBudget(self._model_job.batch_tokens)
        return peak_memory()

    def score(self, task: tuple[Chunk, ...]) -> TaskReport:
        """Score and commit chunks of the same pairs, one for each method; every pair ends in scores or failures.

        Raises:
            DatasetError: the pairs cannot be read.
            OutputError: the tables cannot be written.
        """
        from attrib_batch.attribution.engine import score_pairs

        started = time.perf_counter()
        with self._reading:
            encoded = encode_pairs(
                self._table(task[0].cell.dataset).rows(task[0].start, task[0].stop),
                self._model.tokenizer,
                prepend_bos=self._model_job.prepend_bos,
                max_tokens=self._model.dimensions.max_tokens,
            )
        problems = [item for item in encoded if isinstance(item, PairProblem)]
        pairs = [item for item in encoded if isinstance(item, EncodedPair)]
        results = {chunk.cell.method: _ChunkResult.of(problems) for chunk in task}
        with self._scoring:
            scoring = time.perf_counter()
            methods = [self.job.method(name) for name in results]
            for method, outcome in score_pairs(self._model, pairs, methods, self._budget):
                results[method.id].add(outcome)
            model_seconds = time.perf_counter() - scoring
        written = [results[chunk.cell.method].commit(self.store, chunk) for chunk in task]
        scored = [batch.pairs for result in results.values() for batch in result.batches]
        return TaskReport(
            task=task,
            n_scored=sum(map(len, scored)),
            n_failed=sum(len(result.failures) for result in results.values()),
            score_rows=sum(rows for rows, _ in written),
            score_bytes=sum(size for _, size in written),
            tokens=sum(2 * pair.n_tokens for pairs in scored for pair in pairs),
            seconds=time.perf_counter() - started,
            model_seconds=model_seconds,
            peak_bytes=peak_memory(),
        )

    def _table(self, dataset: str) -> PairTable:
        if dataset not in self._tables:
            spec = self.job.dataset(dataset)
            self._tables[dataset] = PairTable.open(spec.path, spec.limit)
        return self._tables[dataset]


@dataclass
class _ChunkResult:
    """The scores and failures of one chunk while they come in."""

    batches: list[ScoredBatch] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, problems: Sequence[PairProblem]) -> _ChunkResult:
        """A chunk with pairs that cannot be tokenised as they must be."""
        rows = [_failure(p.pair_id, Stage.VALIDATE, p.reason, p.message, attempts=1) for p in problems]
        return cls(failures=rows)

    def add(self, outcome: Outcome) -> None:
        from attrib_batch.attribution.engine import ScoredBatch

        if isinstance(outcome, ScoredBatch):
            self.batches.append(outcome)
        else:
            self.failures.append(
                _failure(outcome.pair.pair_id, Stage.SCORE, outcome.reason, outcome.message, attempts=outcome.attempts)
            )

    def commit(self, store: Store, chunk: Chunk) -> tuple[int, int]:
        """Write the chunk's tables; returns the rows and bytes of its scores."""
        scores = score_rows(self.batches)
        baselines, failures = baseline_rows(self.batches), failure_rows(self.failures)
        return scores.num_rows, commit_chunk(store, chunk, scores=scores, baselines=baselines, failures=failures)


def _failure(pair_id: int, stage: Stage, reason: str, message: str, *, attempts: int) -> dict[str, Any]:
    return {"pair_id": pair_id, "stage": stage, "error": reason, "message": message, "attempts": attempts}


def peak_memory() -> int:
    """This process's peak resident memory, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
