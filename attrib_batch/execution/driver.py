"""Run what was opened: one stage after the other, on an executor's workers, and account for every pair."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch._version import __version__
from attrib_batch.errors import AttribBatchError, DatasetError, ExitCode, OutputError, RunInterruptedError, StoppedError
from attrib_batch.execution.accounting import Tally
from attrib_batch.execution.loop import EventLoop
from attrib_batch.execution.planning.plan import uncommitted
from attrib_batch.execution.planning.request import weight_bytes
from attrib_batch.execution.strata import join_strata
from attrib_batch.execution.workers.task import peak_memory
from attrib_batch.ndif.keys import ndif_key
from attrib_batch.observe.log import EventKind, Level, RunLog, log_name
from attrib_batch.observe.records import write_record
from attrib_batch.observe.sinks import open_sink
from attrib_batch.storage.remote_jobs import format_counts, jobs_under_way
from attrib_batch.tables import SCORING, Table, parse_part_name
from attrib_batch.tables.manifest import versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.execution.executor import Executor
    from attrib_batch.execution.planning.stages import OpenRun, PlannedStage
    from attrib_batch.observe.progress import ProgressView

LOOK_SECONDS = 2.0
"""How often jobs on NDIF servers are looked at."""
SHOWN_MESSAGES = 3
"""Most messages about a dataset that are shown at the end."""


@dataclass(frozen=True)
class StageResult:
    """How a stage ended, in pairs, each counted once for each method."""

    expected: int
    failed: int

    @property
    def scored(self) -> int:
        """Pairs with scores."""
        return self.expected - self.failed


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    stages: dict[str, StageResult]
    """By name, in the order in which they were done."""
    tally: Tally

    @property
    def scoring(self) -> StageResult:
        """How the scoring stage ended; no pairs where this execution did another stage alone."""
        return self.stages.get(SCORING, StageResult(0, 0))

    @property
    def exit_code(self) -> ExitCode:
        """0 when every pair of the run is scored, 3 when some are in failures."""
        return ExitCode.SOME_FAILED if any(stage.failed for stage in self.stages.values()) else ExitCode.OK


def run_stages(run: OpenRun, executor: Executor, progress: ProgressView, *, keep_process: bool = False) -> RunResult:
    """Compute every chunk of a run that is not committed, and release the run.

    Args:
        run: the opened run.
        executor: gives workers; it is entered only where something is left to compute.
        progress: shows how far it is.
        keep_process: let a second interrupt raise KeyboardInterrupt, and not end the process.

    Raises:
        RequestError: a model or the workers cannot be had as asked.
        DatasetError: some pairs cannot be read; all others are committed.
        RunInterruptedError: stopped by a signal, or no worker can be kept alive. What is committed stays.
    """
    return _Driver(run, executor, progress, keep_process=keep_process).run()


class _StopRequest:
    """Notes that SIGINT or SIGTERM came; a second signal has its usual effect."""

    def __init__(self, *, keep_process: bool) -> None:
        self.since: float | None = None
        self._keep_process = keep_process

    def ask(self, number: int, _frame: object) -> None:
        """Handle a signal."""
        if self.since is not None:
            if self._keep_process and number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.since = time.monotonic()


class _Driver:
    """One execution of a run: stages, signals, the lease, the log and the record."""

    def __init__(self, run: OpenRun, executor: Executor, progress: ProgressView, *, keep_process: bool) -> None:
        self._run = run
        self._executor = executor
        self._progress = progress
        self._keep_process = keep_process
        self._tally = Tally()
        self._planned: list[PlannedStage] = []
        self._on_ndif = any(model.workers.kind == "ndif" for model in run.spec.models)
        self._next_look = 0.0
        self._log = RunLog(
            open_sink(run.store, log_name(run.lease.execution)),
            run=run.manifest.run_id,
            execution=run.lease.execution,
            secrets=[ndif_key(os.environ).get_secret_value()],
        )
        executor.run_id = run.manifest.run_id
        self._loop = EventLoop(executor, self._tally, progress, self._log, weight_bytes)

    def run(self) -> RunResult:
        """Run all stages; leave a log and a record whatever happens."""
        log, tally = self._log, self._tally
        log.write(EventKind.EXECUTION_STARTED, version=__version__)
        log.write(EventKind.LEASE_TAKEN, host=socket.gethostname(), pid=os.getpid())
        code, message = ExitCode.UNFINISHED, None
        try:
            try:
                result = self._do()
            except OutputError as error:
                # It could be written when the run began, so the request itself is not wrong.
                raise RunInterruptedError(str(error)) from error
            code = result.exit_code
        except BaseException as error:
            if isinstance(error, AttribBatchError):
                code = error.exit_code
            message = str(error) or type(error).__name__
            raise
        else:
            return result
        finally:
            log.write(
                EventKind.EXECUTION_ENDED,
                Level.ERROR if message else Level.INFO,
                exit_code=code,
                pairs=tally.scored,
                failed=tally.failed,
                seconds=round(tally.seconds, 3),
                message=message,
            )
            log.close()

    def _do(self) -> RunResult:
        try:
            with _stop_on_signal(keep_process=self._keep_process) as stop:
                self._do_stages(stop)
            self._join_strata()
        finally:
            self._progress.close(self._tally.snapshot(at_end=True))
            self._warn()
            self._release()
            self._record()
        return RunResult(
            {stage.name: StageResult(stage.n_pairs, _count_failures(stage)) for stage in self._planned}, self._tally
        )

    def _do_stages(self, stop: _StopRequest) -> None:
        entered = False
        try:
            for index, stage in enumerate(self._run.stages):
                planned = stage.plan(self._run)
                self._planned.append(planned)
                self._begin(planned)
                if any(planned.waiting.values()):
                    if not entered:
                        self._executor.__enter__()
                        entered = True
                    last = index + 1 == len(self._run.stages)
                    self._loop.run(planned, lambda: self._poll(stop), last=last)
                    self._check_end(planned, stop)
        finally:
            if entered:
                self._executor.__exit__()

    def _join_strata(self) -> None:
        try:
            for stage in self._planned:
                join_strata(stage.work.store, (plan.cell for plan in stage.cells))
        except OutputError as error:  # every pair is committed; it is tried again when the job is
            self._progress.note(str(error))

    def _begin(self, stage: PlannedStage) -> None:
        waiting = stage.n_waiting
        committed = stage.n_pairs - sum(waiting.values())
        self._tally.stage_began(stage.name, committed, waiting)
        self._log.write(EventKind.STAGE_STARTED, stage=stage.name, total=stage.n_pairs, committed=committed)
        if committed or (self._run.resumed and len(self._planned) == 1):
            self._progress.note(f"resuming {stage.name}: {committed:,} of {stage.n_pairs:,} pairs are committed")

    def _check_end(self, stage: PlannedStage, stop: _StopRequest) -> None:
        """Raise the error that ends the run after a stage: it was stopped, or not everything is committed."""
        if stop.since is not None and self._tally.done < self._tally.total:
            raise StoppedError(
                f"stopped with {self._tally.done:,} of {self._tally.total:,} pairs committed. "
                "The same command goes on from there."
            )
        self._check_unreadable()
        if missing := uncommitted(stage.work.store, stage.cells):
            raise RunInterruptedError(
                f"{len(missing):,} chunks were committed and are not in {stage.work.store.root} any more. "
                "The same command computes them again."
            )

    def _poll(self, stop: _StopRequest) -> bool | None:
        """Check the lease, NDIF jobs and signals; the return value is that of ``poll`` in `EventLoop.run`."""
        self._run.lease.check()
        self._look_at_ndif()
        if stop.since is None:
            return False
        return True if time.monotonic() - stop.since < self._executor.grace_seconds else None

    def _warn(self) -> None:
        """Say which pairs were scored with something doubtful."""
        for dataset, counts in self._tally.warnings.items():
            for kind, n_pairs in counts.items():
                self._progress.note(
                    f"warning: {n_pairs:,} pairs of {dataset}: {kind}; `attrib-batch pairs validate` says which and why"
                )

    def _release(self) -> None:
        problem = self._run.lease.release()
        self._log.write(EventKind.LEASE_RELEASED, Level.WARNING if problem else Level.INFO, message=problem)
        if problem:
            self._progress.note(problem)

    def _record(self) -> None:
        facts = {**self._tally.record(), "driver_peak_bytes": peak_memory(), "versions": versions()}
        try:
            write_record(self._run.store, self._run.lease.execution, facts)
        except OutputError as error:  # no reason to hide how the run itself ended
            self._progress.note(str(error))

    def _check_unreadable(self) -> None:
        """Raise DatasetError for pairs that could not be read, now that everything else is done."""
        if not self._loop.unreadable:
            return
        messages = list(dict.fromkeys(message for _, message in self._loop.unreadable))
        n_pairs = sum(chunk.n_pairs for task, _ in self._loop.unreadable for chunk in task)
        more = f"\n(and {len(messages) - SHOWN_MESSAGES} more like these)" if len(messages) > SHOWN_MESSAGES else ""
        raise DatasetError(
            "\n".join(messages[:SHOWN_MESSAGES])
            + f"{more}\n{n_pairs:,} pairs could not be read; all others are committed."
        )

    def _look_at_ndif(self) -> None:
        """Count what is under way on NDIF servers, now and then: it is read from files."""
        if self._on_ndif and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._tally.elsewhere = format_counts(jobs_under_way(self._planned[-1].work.store))


def _count_failures(stage: PlannedStage) -> int:
    """Return how many pairs are in the failures tables of a stage's cells, earlier executions included."""
    store = stage.work.store
    files = [file for plan in stage.cells for file in store.list(f"{Table.FAILURES}/{plan.cell.partition}")]
    return sum(store.count_rows(file.relative) for file in files if parse_part_name(file.name))


@contextmanager
def _stop_on_signal(*, keep_process: bool) -> Iterator[_StopRequest]:
    """Turn SIGINT and SIGTERM into a request; only the main thread may receive signals."""
    request = _StopRequest(keep_process=keep_process)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
