"""Run a prepared job: start Ray, have the tasks of each model done, and account for every pair."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch._version import __version__
from attrib_batch.errors import AttribBatchError, DatasetError, ExitCode, OutputError, RunInterruptedError
from attrib_batch.execution.dispatch import Dispatch
from attrib_batch.execution.planning.prepare import uncommitted
from attrib_batch.execution.ray.folder import check_ray_folder
from attrib_batch.execution.ray.gangs import NDIF_KEY
from attrib_batch.execution.ray.head import SHUTDOWN_SECONDS, HeadWatch, answers
from attrib_batch.execution.ray.metrics import RunMetrics
from attrib_batch.execution.tally import Tally
from attrib_batch.observe.log import Level, ModelLog, RunLog, What, log_name
from attrib_batch.observe.records import record_execution
from attrib_batch.observe.sinks import open_sink
from attrib_batch.tables import Table, parse_part_name
from attrib_batch.tables.remote_jobs import in_words, jobs_under_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.execution.planning.plan import Task
    from attrib_batch.execution.planning.prepare import PreparedRun
    from attrib_batch.observe.progress import ProgressView

LOOK_SECONDS = 2.0
"""How often jobs on NDIF servers are looked at."""
STOP_GRACE_SECONDS = 20.0
"""How long a stopped run waits for the chunks in flight, so that their work is not lost."""
SHOWN_MESSAGES = 3
"""Most messages about a dataset that are shown at the end."""

_HOST_AND_PORT = re.compile(r"^[^/]+:\d+$")


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    expected: int
    scored: int
    failed: int
    tally: Tally

    @property
    def exit_code(self) -> ExitCode:
        """0 when every pair of the run is scored, 3 when some are in failures."""
        return ExitCode.SOME_FAILED if self.failed else ExitCode.OK


class _StopRequest:
    """Set by SIGINT or SIGTERM; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.since: float | None = None

    def ask(self, number: int, _frame: object) -> None:
        if self.since is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.since = time.monotonic()


def run_prepared(prepared: PreparedRun, progress: ProgressView, *, address: str | None = None) -> RunResult:
    """Compute every chunk that is not committed.

    Args:
        prepared: the checked request.
        progress: shows how far it is.
        address: a Ray cluster to join; None starts Ray on this machine.

    Raises:
        RequestError: the model or the workers cannot be had as asked.
        DatasetError: some pairs cannot be read; all others are committed.
        RunInterruptedError: stopped by a signal, or no worker can be kept alive. What is committed stays.
    """
    return _Driver(prepared, progress).run(address)


class _Driver:
    """One execution: what is counted, shown and obeyed while workers work."""

    def __init__(self, prepared: PreparedRun, progress: ProgressView) -> None:
        self._prepared = prepared
        self._progress = progress
        self._tally = Tally(
            prepared.n_committed_pairs,
            {
                model: sum(chunk.n_pairs for task in tasks for chunk in task)
                for model, tasks in prepared.waiting.items()
            },
        )
        self._on_ndif = any(model.workers.kind == "ndif" for model in prepared.spec.models)
        self._look_again = 0.0
        self._unreadable: list[tuple[Task, str]] = []
        execution = prepared.lease.execution
        self._log = RunLog(
            open_sink(prepared.store, log_name(execution)),
            run=prepared.manifest["run_id"],
            execution=execution,
            secrets=[os.environ.get(NDIF_KEY, "").strip()],
        )

    def run(self, address: str | None) -> RunResult:
        log, tally = self._log, self._tally
        log.write(What.EXECUTION_STARTED, version=__version__, total=tally.total, committed=tally.earlier)
        log.write(What.LEASE_TAKEN, host=socket.gethostname(), pid=os.getpid())
        code, message = ExitCode.UNFINISHED, None
        try:
            try:
                result = self._run(address)
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
                What.EXECUTION_ENDED,
                Level.ERROR if message else Level.INFO,
                exit_code=code,
                pairs=tally.scored,
                failed=tally.failed,
                seconds=round(tally.seconds, 3),
                message=message,
            )
            log.close()

    def _run(self, address: str | None) -> RunResult:
        tally = self._tally
        if self._prepared.resumed:
            self._progress.note(f"resuming: {tally.earlier:,} of {tally.total:,} pairs are committed")
        try:
            if any(self._prepared.waiting.values()):
                with _ray(address) as head, _stop_on_signal() as stop:
                    for model_name, tasks in self._prepared.waiting.items():
                        if tasks:
                            self._run_model(model_name, tasks, head, stop)
                self._complain()
        finally:
            self._progress.close(tally)
            self._warn()
            self._release()
            self._record()
        if missing := uncommitted(self._prepared.store, self._prepared.plan):
            raise RunInterruptedError(
                f"{len(missing):,} chunks were committed and are not in {self._prepared.store.root} any more. "
                "The same command computes them again."
            )
        failed = count_failures(self._prepared)
        return RunResult(tally.total, tally.total - failed, failed, tally)

    def _run_model(self, model_name: str, tasks: list[Task], head: HeadWatch, stop: _StopRequest) -> None:
        log, metrics = ModelLog(self._log, model_name), RunMetrics(self._log.run, model_name)
        dispatch = Dispatch(self._prepared, model_name, tasks, self._tally, self._progress, head, log, metrics)

        def attend() -> bool | None:
            self._prepared.lease.check()
            head.check()
            self._look_elsewhere()
            if stop.since is None:
                return False
            return True if time.monotonic() - stop.since < STOP_GRACE_SECONDS else None

        dispatch.run(attend)
        self._unreadable += dispatch.unreadable
        if stop.since is not None and self._tally.done < self._tally.total:
            raise RunInterruptedError(
                f"stopped with {self._tally.done:,} of {self._tally.total:,} pairs committed. "
                "The same command goes on from there."
            )

    def _warn(self) -> None:
        """Say which pairs were scored with something doubtful."""
        for dataset, counts in self._tally.warnings.items():
            for kind, n_pairs in counts.items():
                self._progress.note(
                    f"warning: {n_pairs:,} pairs of {dataset}: {kind}; `attrib-batch pairs validate` says which and why"
                )

    def _release(self) -> None:
        trouble = self._prepared.lease.release()
        self._log.write(What.LEASE_RELEASED, Level.WARNING if trouble else Level.INFO, message=trouble)
        if trouble:
            self._progress.note(trouble)

    def _record(self) -> None:
        try:
            record_execution(self._prepared, self._tally)
        except OutputError as error:  # no reason to hide how the run itself ended
            self._progress.note(str(error))

    def _complain(self) -> None:
        """End with what could not be read, now that everything else is done."""
        if not self._unreadable:
            return
        messages = list(dict.fromkeys(message for _, message in self._unreadable))
        n_pairs = sum(chunk.n_pairs for task, _ in self._unreadable for chunk in task)
        more = f"\n(and {len(messages) - SHOWN_MESSAGES} more like these)" if len(messages) > SHOWN_MESSAGES else ""
        raise DatasetError(
            "\n".join(messages[:SHOWN_MESSAGES])
            + f"{more}\n{n_pairs:,} pairs could not be read; all others are committed."
        )

    def _look_elsewhere(self) -> None:
        """Count what is under way on NDIF servers, now and then: it is read from files."""
        if self._on_ndif and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + LOOK_SECONDS
            self._tally.elsewhere = in_words(jobs_under_way(self._prepared.store))


def count_failures(prepared: PreparedRun) -> int:
    """Pairs in the failures tables of the whole run, earlier executions included."""
    store = prepared.store
    files = store.list(Table.FAILURES, recursive=True)
    return sum(store.count_rows(file.relative) for file in files if parse_part_name(file.name))


@contextmanager
def _ray(address: str | None) -> Iterator[HeadWatch]:
    """Ray for the length of a run, and a watch on its head; one that was there before is left as it was.

    Raises:
        RequestError: Ray is to be started, and its folder for temporary files does not allow that.
        RunInterruptedError: there is no cluster at the address, or Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Otherwise Ray replaces the loopback address by the machine's own, and listens there. (On a cluster it would
        # be the other way round: other nodes could not reach this process.)
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Under `uv run`, Ray would send the working folder to the workers and start them by uv, in an environment of their
    # own. They are to run what runs here. Ray reads this once, when it is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        with HeadWatch(ray.get_runtime_context().gcs_address) as head:
            yield head
        return
    if address is None:
        _start()
    else:
        _join(address)
    with HeadWatch(ray.get_runtime_context().gcs_address) as head:
        try:
            yield head
        finally:
            if head.lost:  # it may wait for it
                ended = threading.Thread(target=ray.shutdown, name="shutdown", daemon=True)
                ended.start()
                ended.join(SHUTDOWN_SECONDS)
            else:
                ray.shutdown()


def _start() -> None:
    """Start Ray on this machine.

    Raises:
        RequestError: its folder for temporary files does not allow that.
        RunInterruptedError: it does not start.
    """
    import ray

    check_ray_folder()
    try:
        ray.init(
            address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
    except Exception as error:  # Ray raises the base class itself where a node does not come up in time
        raise RunInterruptedError(
            f"Ray could not start on this machine: {' '.join(str(error).split())} The machine may be busy, or its "
            "memory or disk full. What is committed stays, and the same command goes on from there."
        ) from error


def _join(address: str) -> None:
    import ray

    hint = "Is it running, and is --address that of its head (host:port, as `ray start --head` shows it)?"
    if _HOST_AND_PORT.match(address) and not answers(address):
        # Ray itself would try for a quarter of an hour.
        raise RunInterruptedError(f"no Ray cluster answers at {address}. {hint}")
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise RunInterruptedError(
            f"cannot join the Ray cluster at {address}: {' '.join(str(error).split())}"
        ) from error


@contextmanager
def _stop_on_signal() -> Iterator[_StopRequest]:
    """Turn SIGINT and SIGTERM into a request; only the main thread may receive signals."""
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
