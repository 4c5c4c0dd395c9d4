"""The worker that owns a session with an NDIF server, which holds the model and computes.

It sends a task as one request, waits, and commits what comes back like any other worker. It holds no weights.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError, RunInterruptedError, TaskError
from attrib_batch.execution.imports import collector_paused
from attrib_batch.execution.workers.scoring import score_task
from attrib_batch.execution.workers.task import (
    LoadReport,
    TaskReader,
    TaskReport,
    on_batch_ignored,
    peak_memory,
    watched,
)
from attrib_batch.ndif.errors import JobFailedError, JobGoneError, JobTooLongError
from attrib_batch.ndif.server import PUBLIC_HOST, NdifServer
from attrib_batch.storage.remote_jobs import RemoteJob, forget_jobs, job_name, read_job, write_job
from attrib_batch.tables import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nnsight.intervention.backends.remote import RemoteBackend
    from pydantic import SecretStr

    from attrib_batch.attribution.engine import Outcome
    from attrib_batch.attribution.references import Means
    from attrib_batch.execution.planning.stages import StageWork
    from attrib_batch.execution.scheduling.assignment import Assignment
    from attrib_batch.execution.workers.task import OnBatch
    from attrib_batch.ndif.request import Answer
    from attrib_batch.ndif.server import JobStatus
    from attrib_batch.pairs.encoding.encode import EncodedPair
    from attrib_batch.spec import MethodSpec, ModelSpec
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import Chunk

MAX_SUBMISSIONS = 3
"""How often a request is sent whose job the server lost or ended for reasons of its own."""


@dataclass(frozen=True)
class _Asked:
    """What is asked of the server for the pairs of a task, and where its jobs are kept."""

    store: Store
    task: tuple[Chunk, ...]
    methods: Sequence[MethodSpec]
    means: Means | None


@dataclass
class NdifWorker:
    """Owns one session: at most one request of it is on the server at a time."""

    model_spec: ModelSpec
    methods: tuple[MethodSpec, ...]
    """Those of the job: their metrics are tried once the model is there."""
    key: SecretStr

    def load(self) -> LoadReport:
        """Build the model's structure here, and check the server.

        Raises:
            ModelError: the model is unknown, here or there, or the server does not fit.
            JobError: a metric of one's own cannot be used here.
            RunInterruptedError: the server does not answer.
        """
        started = time.perf_counter()
        with collector_paused():
            from attrib_batch.attribution.metrics import try_metrics
            from attrib_batch.ndif.model import open_remote_model

            self._model = open_remote_model(self.model_spec)
        self._seconds = self.model_spec.workers.timeout_seconds
        try_metrics(self.methods, self._model.dimensions.d_vocab)
        self._server = NdifServer(
            self.model_spec.workers.host or PUBLIC_HOST,
            self.key,
            note=lambda message: print(message, file=sys.stderr, flush=True),  # noqa: T201 - the actor's log
        )
        self._server.check(self._model, seconds=self._seconds)
        self._reader = TaskReader(self.model_spec, self._model)
        # Two tasks may be in hand: one is read or written while the server works on the other.
        self._session = threading.Lock()
        self._most_pairs: dict[str, int] = {}
        return LoadReport(peak_memory(), parameters=0, seconds=time.perf_counter() - started)

    def score(self, assignment: Assignment, work: StageWork, on_batch: OnBatch = on_batch_ignored) -> TaskReport:
        """Have chunks of the same pairs scored, one for each method, and commit them.

        Raises:
            ModelError: the server refuses the request.
            TaskError: pairs ended in an exception that is no pair's fault; nothing is committed.
            RunInterruptedError: the server does not answer, or cannot do what it is asked.
            DatasetError: the pairs cannot be read.
            OutputError: the tables cannot be written.
        """
        started = time.perf_counter()
        pairs, results = self._reader.begin(assignment, work)
        means = self._reader.means(assignment, work)
        asked = _Asked(work.store, assignment.task, results.methods, means)

        def score(pairs: Sequence[EncodedPair]) -> Iterator[tuple[MethodSpec, Outcome]]:
            return watched(self._scored(asked, pairs), on_batch)

        with self._session:
            scoring, downloaded = time.perf_counter(), self._server.downloaded_bytes
            try:
                score_task(assignment, pairs, results, score)
            except TaskError:
                # Otherwise a fresh worker would fetch the same results again.
                forget_jobs(work.store, assignment.task[0], results.methods[0])
                raise
            model_seconds = time.perf_counter() - scoring
            downloaded = self._server.downloaded_bytes - downloaded
        report = results.commit(
            work.store,
            seconds=time.perf_counter() - started,
            model_seconds=model_seconds,
            downloaded_bytes=downloaded,
        )
        # Only now: who comes after a death finds the results.
        forget_jobs(work.store, assignment.task[0], results.methods[0])
        return report

    def _scored(self, asked: _Asked, pairs: Sequence[EncodedPair]) -> Iterator[tuple[MethodSpec, Outcome]]:
        """Send pairs as one request; as several if the server finds it too long, or found one of its size so."""
        from attrib_batch.attribution.engine import FailedPair
        from attrib_batch.ndif.request import outcomes

        store, methods = asked.store, asked.methods
        together = methods[0].id
        if len(pairs) > self._most_pairs.get(together, len(pairs)):
            middle = len(pairs) // 2
            for half in (pairs[:middle], pairs[middle:]):
                yield from self._scored(asked, half)
            return
        if not pairs:
            return
        name = job_name(asked.task[0], methods[0], [pair.pair_id for pair in pairs])
        try:
            answer = self._answer(asked, name, pairs)
        except JobTooLongError as error:
            if len(pairs) == 1:
                self._most_pairs.pop(together, None)  # the pair was to blame, not how many there were
                message = f"{type(error).__name__}: {error}"
                for method in methods:
                    yield method, FailedPair(pairs[0], FailureReason.SCORING_ERROR, message, attempts=1)
                return
            # As a token budget, it shrinks and stays so: the server would spend all its time on every task again.
            self._most_pairs[together] = len(pairs) // 2
            yield from self._scored(asked, pairs)
            return
        if answer["dtype"] != self.model_spec.dtype:
            store.remove(name)
            raise ModelError(
                f"{self._server.host} holds {self.model_spec.id!r} in {answer['dtype']}, and the job says "
                f"{self.model_spec.dtype}; set the model's dtype to {answer['dtype']}"
            )
        yield from outcomes(answer, pairs, methods)

    def _answer(self, asked: _Asked, name: str, pairs: Sequence[EncodedPair]) -> Answer:
        """Return the result of a request: of the job that is under way for it, or of a new one."""
        from attrib_batch.ndif.request import RESULT

        store = asked.store
        for submission in range(1, MAX_SUBMISSIONS + 1):
            job = read_job(store, name)
            if job is None or not {method.id for method in asked.methods} <= set(job.methods):
                job = self._submit(asked, name, pairs)

            def keep(status: JobStatus, job: RemoteJob = job) -> None:
                write_job(store, job.with_status(status.status, status.description))

            try:
                answer: Answer = self._server.fetch(self._model, job.job_id, keep, seconds=self._seconds)[RESULT]
            except JobFailedError:
                store.remove(name)  # otherwise the same command would be told the same for ever
                raise
            except JobGoneError as error:
                store.remove(name)
                if submission == MAX_SUBMISSIONS:
                    raise RunInterruptedError(
                        f"{error}. It was sent {submission} times. What is committed stays; the same command resumes"
                    ) from error
            else:
                return answer
        raise AssertionError("the loop returns or raises")

    def _submit(self, asked: _Asked, name: str, pairs: Sequence[EncodedPair]) -> RemoteJob:
        from attrib_batch.ndif.request import BATCH_TOKENS, ask

        given = self.model_spec.batch_tokens
        batch_tokens = BATCH_TOKENS if given == "auto" else given

        def send(backend: RemoteBackend) -> None:
            ask(self._model, pairs, asked.methods, batch_tokens=batch_tokens, backend=backend, means=asked.means)

        job_id = self._server.submit(self._model, send, seconds=self._seconds)
        ids = tuple(method.id for method in asked.methods)
        job = RemoteJob(
            name, job_id, self._server.host, self.model_spec.name, ids, len(pairs), submitted_at=time.time()
        )
        write_job(asked.store, job)
        return job
