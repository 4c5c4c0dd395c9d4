"""A task from table to table: read and tokenise its pairs, collect what became of them, commit its chunks.

What every kind of worker has in common. How pairs are scored in between is the worker's own.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.commit import commit_chunk, commit_means, failure_row, failure_rows, worker_failures
from attrib_batch.execution.means import load_means, means_table
from attrib_batch.pairs.encoding.encode import EncodedPair, PairProblem, encode_pairs
from attrib_batch.pairs.encoding.texts import TokenTexts
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.spec import Component, Reading
from attrib_batch.spec.method import MEAN
from attrib_batch.spec.registries.methods import method_entry
from attrib_batch.storage.parquet import FAST, encode_parquet, join_parquet
from attrib_batch.tables import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from attrib_batch.attribution.engine import Outcome, ScoredBatch
    from attrib_batch.attribution.references import Means
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.ndif.model import RemoteModel
    from attrib_batch.spec import MethodSpec, ModelSpec, SweepSpec
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Chunk


@dataclass(frozen=True)
class TaskReport:
    """A worker's report of a task that it committed, or of a probe that it survived."""

    assignment: Assignment
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
    downloaded_bytes: int = 0
    """What an NDIF server sent as results."""
    warnings: dict[str, int] = field(default_factory=dict)
    """Pairs to be scored with something that may be wrong, by `PairWarning`: each counts once, whatever the methods."""


@dataclass(frozen=True)
class LoadReport:
    """A worker's report of itself once it can take tasks."""

    peak_bytes: int
    parameters: int
    """Parameters it holds; of a sharded model its shard's, of a remote one none."""
    seconds: float
    """How long it took to load."""
    arithmetic: Mapping[str, Any] = field(default_factory=dict)
    """Its device and how it computes there, as `describe_arithmetic` has it; of a remote model nothing."""


@dataclass
class TaskReader:
    """Reads the pairs of tasks as tokens."""

    model_spec: ModelSpec
    model: LoadedModel | RemoteModel
    _tables: dict[tuple[str, int | None, str], PinnedTable] = field(default_factory=dict, init=False, repr=False)
    _texts: TokenTexts = field(init=False, repr=False)
    _means: dict[tuple[str, tuple[Component, ...]], Means] = field(default_factory=dict, init=False, repr=False)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._texts = TokenTexts(self.model.tokenizer)

    def begin(self, assignment: Assignment, work: StageWork) -> tuple[list[EncodedPair], TaskResults]:
        """Return the pairs of a task that are to be scored, and its results, which hold those that are not.

        These are what is no pair of equally long prompts with known answers, and the pairs that are left out; the
        latter are not even tokenised. Threads take turns.

        Raises:
            DatasetError: the rows cannot be read.
        """
        with self._one_at_a_time:
            pairs, failures = self._read(assignment, work)
            # Here, where threads take turns: a tokenizer is not for several at once.
            texts = self._texts.of(token for pair in pairs for token in (*pair.clean, *pair.corrupted))
        warnings = Counter(str(kind) for pair in pairs for kind, _ in pair.warnings)
        n_threads = max(1, int(self.model_spec.workers.cpus))
        return pairs, TaskResults(work.spec, assignment, failures, texts, warnings, n_threads=n_threads)

    def _read(self, assignment: Assignment, work: StageWork) -> tuple[list[EncodedPair], list[dict[str, Any]]]:
        start, stop = assignment.rows
        rows = self._table(assignment.task[0].cell.dataset, work).rows(start, stop)
        left_out = {pair.row for pair in assignment.left_out}
        encoded = encode_pairs(
            [pair for row, pair in enumerate(rows, start) if row not in left_out],
            self.model.tokenizer,
            prepend_bos=self.model_spec.prepend_bos,
            max_tokens=self.model.dimensions.max_tokens,
            vocabulary_size=self.model.dimensions.d_vocab,
            allow_boundary=work.spec.allow_boundary,
            bos_token=self.model_spec.bos_token,
            **Reading.of(work.spec.method(assignment.task[0].cell.method))._asdict(),
        )
        failures = [
            failure_row(item.pair_id, Stage.VALIDATE, item.reason, item.message, attempts=1)
            for item in encoded
            if isinstance(item, PairProblem)
        ]
        failures += worker_failures(rows, start, assignment.left_out)
        return [item for item in encoded if isinstance(item, EncodedPair)], failures

    def means(self, assignment: Assignment, work: StageWork) -> Means | None:
        """Return the mean activations that the methods of a task replace activations by, if they do.

        Raises:
            OutputError: they cannot be read.
        """
        methods = [work.spec.method(chunk.cell.method) for chunk in assignment.task]
        asking = [m for m in methods if m.reference == MEAN and not method_entry(m.kind).collects]
        if not asking or work.reference is None:
            return None
        components = tuple(dict.fromkeys(component for method in asking for component in method.components))
        key = (assignment.task[0].cell.dataset, components)
        with self._one_at_a_time:
            if key not in self._means:
                self._means[key] = load_means(work.reference, self.model_spec.name, *key)
            return self._means[key]

    def _table(self, dataset: str, work: StageWork) -> PinnedTable:
        spec = work.spec.dataset(dataset)
        key = (spec.path, spec.limit, work.pins[dataset])
        if key not in self._tables:
            self._tables[key] = PinnedTable(*key)
        return self._tables[key]


OnBatch = Callable[[int], None]
"""Called with the number of pairs of each micro-batch, once for each method; an exception of it ends the task."""


def on_batch_ignored(_n_pairs: int) -> None:
    """Do nothing."""


def watched(outcomes: Iterable[tuple[MethodSpec, Outcome]], on_batch: OnBatch) -> Iterator[tuple[MethodSpec, Outcome]]:
    """Yield outcomes, and call ``on_batch`` with the number of pairs of each."""
    from attrib_batch.attribution.engine import ScoredBatch

    for method, outcome in outcomes:
        yield method, outcome
        on_batch(len(outcome.pairs) if isinstance(outcome, ScoredBatch) else 1)


class TaskResults:
    """What became of the pairs of a task, for each of its methods."""

    def __init__(
        self,
        spec: SweepSpec,
        assignment: Assignment,
        failures: Sequence[dict[str, Any]],
        texts: Mapping[int, str],
        warnings: Mapping[str, int] = MappingProxyType({}),
        *,
        n_threads: int = 1,
    ) -> None:
        """Begin with the pairs that are not to be scored.

        Args:
            spec: the stage's methods and datasets.
            assignment: the task.
            failures: rows of the failures table, for every method.
            texts: the text of every token of the pairs that are to be scored.
            warnings: pairs to be scored with something that may be wrong, by kind.
            n_threads: how many threads build and encode tables.
        """
        self._assignment = assignment
        self._n_threads = n_threads
        self._warnings = warnings
        self._texts = texts
        self.methods: list[MethodSpec] = [spec.method(chunk.cell.method) for chunk in assignment.task]
        self._of = {
            method.id: _ChunkResult(
                failures=list(failures),
                averaged=method.components[0] if method_entry(method.kind).collects else None,
            )
            for method in self.methods
        }

    def add(self, method: MethodSpec, outcome: Outcome) -> None:
        """Take the scores of a batch, or the failure of a pair."""
        self._of[method.id].add(outcome)

    def commit(self, store: Store, *, seconds: float, model_seconds: float, downloaded_bytes: int = 0) -> TaskReport:
        """Write the tables of every chunk of the task; of a probe nothing is written or counted.

        Args:
            store: the run's directory.
            seconds: time spent on the task before writing.
            model_seconds: time of it spent scoring.
            downloaded_bytes: what came from an NDIF server.

        Raises:
            OutputError: the tables cannot be written.
        """
        started = time.perf_counter()
        probe = self._assignment.probe is not None
        results = {} if probe else {chunk: self._of[chunk.cell.method] for chunk in self._assignment.task}
        with ThreadPoolExecutor(self._n_threads, thread_name_prefix="writer") as threads:
            written = [result.commit(store, chunk, self._texts, threads) for chunk, result in results.items()]
        scored = [batch.pairs for result in results.values() for batch in result.batches]
        return TaskReport(
            assignment=self._assignment,
            n_scored=sum(map(len, scored)),
            n_failed=sum(len(result.failures) for result in results.values()),
            score_rows=sum(rows for rows, _ in written),
            score_bytes=sum(size for _, size in written),
            tokens=sum(2 * pair.n_tokens for pairs in scored for pair in pairs),
            seconds=seconds + time.perf_counter() - started,
            model_seconds=model_seconds,
            peak_bytes=peak_memory(),
            downloaded_bytes=downloaded_bytes,
            warnings={} if probe else dict(self._warnings),
        )


@dataclass
class _ChunkResult:
    """The scores and failures of one chunk while they come in."""

    batches: list[ScoredBatch] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    averaged: Component | None = None
    """The component whose mean activations are all that the chunk is to hold."""

    def add(self, outcome: Outcome) -> None:
        from attrib_batch.attribution.engine import ScoredBatch

        if isinstance(outcome, ScoredBatch):
            self.batches.append(outcome)
        else:
            self.failures.append(
                failure_row(
                    outcome.pair.pair_id, Stage.SCORE, outcome.reason, outcome.message, attempts=outcome.attempts
                )
            )

    def commit(self, store: Store, chunk: Chunk, texts: Mapping[int, str], threads: Executor) -> tuple[int, int]:
        """Write the chunk's tables, built and encoded by ``threads``; return the rows and bytes of its scores."""
        if self.averaged is not None:
            collected = [batch.result.sums for batch in self.batches if batch.result.sums is not None]
            return 0, commit_means(store, chunk, means_table(self.averaged, collected), failure_rows(self.failures))
        # It imports torch, which is load()'s to do: what importing it raises then reaches the driver as it is.
        from attrib_batch.execution.workers.rows import baseline_rows, measured_rows, moment_pieces, prompt_rows
        from attrib_batch.execution.workers.score_rows import ScoreParts
        from attrib_batch.tables.shortening import shortened

        parts, sums = ScoreParts(self.batches), moment_pieces(self.batches)
        pieces, encoded = [], []
        # In turns: sums hold the interpreter again and again, encoding does not, so each leaves the other room.
        for index in range(max(len(sums), len(parts))):
            if index < len(parts):
                encoded.append(threads.submit(lambda part: encode_parquet(parts.table(part), level=FAST), index))
            if index < len(sums):
                pieces.append(threads.submit(sums.compute, index))
        # Tasks begin in turn: when this one does, it waits at most for pieces that other threads are at.
        summed = threads.submit(
            lambda: [encode_parquet(shortened(table)) for table in sums.tables([piece.result() for piece in pieces])]
        )
        prompts = threads.submit(lambda: encode_parquet(prompt_rows(self.batches, texts)))
        baselines = threads.submit(lambda: encode_parquet(baseline_rows(self.batches)))
        moments, strata = summed.result()
        return parts.n_rows, commit_chunk(
            store,
            chunk,
            scores=join_parquet([part.result() for part in encoded]),
            baselines=baselines.result(),
            failures=failure_rows(self.failures),
            moments=moments,
            strata=strata,
            prompts=prompts.result(),
            measured=measured_rows(self.batches),
        )


def peak_memory() -> int:
    """Return this process's peak resident memory, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Not what getrusage says: that includes the memory of the process this one was forked from.
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
