"""The worker that owns a whole model: it takes chunks, scores them and commits them itself.

The class is plain; the driver makes a Ray actor of it. No score passes through Ray: a worker returns counts.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attrib_batch.pairs.encode import EncodedPair, PairProblem, encode_pairs
from attrib_batch.pairs.reader import PairTable
from attrib_batch.schema import Chunk, Stage
from attrib_batch.workers.commit import commit_chunk

if TYPE_CHECKING:
    from attrib_batch.spec import Job
    from attrib_batch.store import Store


@dataclass(frozen=True)
class ChunkReport:
    """What a worker tells the driver about a committed chunk."""

    chunk: Chunk
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

    def load(self) -> int:
        """Load the model; returns the worker's peak resident memory in bytes.

        A method, not the constructor: what it raises then reaches the driver as it is.

        Raises:
            ModelError: it cannot be loaded.
        """
        import torch

        from attrib_batch.models.load import load_model

        self._model_job = self.job.model(self.model_name)
        torch.set_num_threads(max(1, int(self._model_job.workers.cpus)))
        self._model = load_model(self._model_job)
        return peak_memory()

    def score_chunk(self, chunk: Chunk) -> ChunkReport:
        """Score and commit the pairs of a chunk; every one ends in its scores or its failures.

        Raises:
            DatasetError: the pairs cannot be read.
            OutputError: the tables cannot be written.
        """
        from attrib_batch.attribution.engine import FailedPair, ScoredBatch, score_pairs
        from attrib_batch.workers.tables import baseline_rows, failure_rows, score_rows

        started = time.perf_counter()
        encoded = encode_pairs(
            self._table(chunk.cell.dataset).rows(chunk.start, chunk.stop),
            self._model.tokenizer,
            prepend_bos=self._model_job.prepend_bos,
            max_tokens=self._model.dimensions.max_tokens,
        )
        failures: list[dict[str, object]] = [
            _failure(item.pair_id, Stage.VALIDATE, item.reason, item.message, 1)
            for item in encoded
            if isinstance(item, PairProblem)
        ]
        pairs = [item for item in encoded if isinstance(item, EncodedPair)]
        batches: list[ScoredBatch] = []
        scoring = time.perf_counter()
        method = self.job.method(chunk.cell.method)
        for outcome in score_pairs(self._model, pairs, method, batch_tokens=self._model_job.batch_tokens):
            if isinstance(outcome, FailedPair):
                failures.append(
                    _failure(outcome.pair.pair_id, Stage.SCORE, outcome.reason, outcome.message, outcome.attempts)
                )
            else:
                batches.append(outcome)
        model_seconds = time.perf_counter() - scoring
        scores = score_rows(batches)
        score_bytes = commit_chunk(
            self.store,
            chunk,
            scores=scores,
            baselines=baseline_rows(batches),
            failures=failure_rows(failures),
        )
        return ChunkReport(
            chunk=chunk,
            n_scored=sum(len(batch.pairs) for batch in batches),
            n_failed=len(failures),
            score_rows=scores.num_rows,
            score_bytes=score_bytes,
            tokens=sum(2 * pair.n_tokens for batch in batches for pair in batch.pairs),
            seconds=time.perf_counter() - started,
            model_seconds=model_seconds,
            peak_bytes=peak_memory(),
        )

    def _table(self, dataset: str) -> PairTable:
        if dataset not in self._tables:
            spec = self.job.dataset(dataset)
            self._tables[dataset] = PairTable.open(spec.path, spec.limit)
        return self._tables[dataset]


def _failure(pair_id: int, stage: Stage, reason: str, message: str, attempts: int) -> dict[str, object]:
    return {"pair_id": pair_id, "stage": stage, "error": reason, "message": message, "attempts": attempts}


def peak_memory() -> int:
    """This process's peak resident memory, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
