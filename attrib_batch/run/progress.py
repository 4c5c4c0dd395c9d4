"""How far a run is: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console

    from attrib_batch.workers.task import Ready, TaskReport

LINE_SECONDS = 10.0
"""Least time between two plain lines."""


@dataclass
class Tally:
    """Pairs of a run, counted as chunks are committed."""

    total: int
    earlier: int
    """Pairs that earlier executions of the run committed."""
    scored: int = 0
    failed: int = 0
    tokens: int = 0
    score_rows: int = 0
    score_bytes: int = 0
    model_seconds: float = 0
    worker_peak_bytes: int = 0
    worker_parameters: int = 0
    """Most parameters that one actor holds."""
    worker_load_seconds: float = 0
    """Longest time from a worker's start to its being ready, loading alone."""
    downloaded_bytes: int = 0
    elsewhere: str = ""
    """What is under way on a server, in words."""
    started: float = field(default_factory=time.perf_counter)
    _at_work: dict[int, tuple[float, float]] = field(default_factory=dict)
    """When each worker was ready, and when it last committed a task."""

    def worker_ready(self, worker: int, ready: Ready) -> None:
        """A worker has loaded its model."""
        now = time.perf_counter()
        self._at_work[worker] = now, now
        self.worker_peak_bytes = max(self.worker_peak_bytes, ready.peak_bytes)
        self.worker_parameters = max(self.worker_parameters, ready.parameters)
        self.worker_load_seconds = max(self.worker_load_seconds, ready.seconds)

    def add(self, worker: int, report: TaskReport) -> None:
        """A worker committed a task."""
        self._at_work[worker] = self._at_work[worker][0], time.perf_counter()
        self.scored += report.n_scored
        self.failed += report.n_failed
        self.tokens += report.tokens
        self.score_rows += report.score_rows
        self.score_bytes += report.score_bytes
        self.model_seconds += report.model_seconds
        self.downloaded_bytes += report.downloaded_bytes
        self.worker_peak_bytes = max(self.worker_peak_bytes, report.peak_bytes)

    @property
    def done(self) -> int:
        """Pairs that are in scores or failures now."""
        return self.earlier + self.scored + self.failed

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return time.perf_counter() - self.started

    @property
    def pairs_per_second(self) -> float:
        """Speed since the first worker was ready; 0 before."""
        elapsed = time.perf_counter() - min((ready for ready, _ in self._at_work.values()), default=self.started)
        return (self.scored + self.failed) / elapsed if elapsed > 0 else 0.0

    @property
    def model_share(self) -> float | None:
        """Share of the workers' wall time spent inside the model, from ready to last commit; None before."""
        at_work = sum(last - ready for ready, last in self._at_work.values())
        return round(self.model_seconds / at_work, 4) if at_work else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end; None while nothing is known."""
        speed = self.pairs_per_second
        return (self.total - self.done) / speed if speed else None

    def describe(self) -> str:
        """One line: done of total, failures, speed, time left."""
        left = self.seconds_left
        parts = [f"{self.done:,} of {self.total:,} pairs"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.pairs_per_second:
            parts.append(f"{self.pairs_per_second:.1f} pairs/s")
        if left is not None and self.done < self.total:
            parts.append(f"{duration(left)} left")
        if self.elsewhere:
            parts.append(self.elsewhere)
        return ", ".join(parts)


class ProgressView(Protocol):
    """Shows a run to a person."""

    def note(self, message: str) -> None:
        """Show a message."""

    def update(self, tally: Tally) -> None:
        """Show how far the run is."""

    def close(self, tally: Tally) -> None:
        """Show the end state and stop."""


class PlainProgress:
    """A line now and then, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def note(self, message: str) -> None:
        """Print a message."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def update(self, tally: Tally) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self.note(tally.describe())

    def close(self, tally: Tally) -> None:
        """Print the last line."""
        self.note(tally.describe())


class LiveProgress:
    """A bar that moves, for terminals."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]scoring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("scoring", total=None, detail="starting workers")
        self._progress.start()

    def note(self, message: str) -> None:
        """Print a message above the bar."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def update(self, tally: Tally) -> None:
        """Move the bar."""
        detail = tally.describe().partition(", ")[2] or "starting workers"
        self._progress.update(self._task, total=tally.total, completed=tally.done, detail=detail)

    def close(self, tally: Tally) -> None:
        """Leave the bar as it stands."""
        self.update(tally)
        self._progress.stop()


def make_progress(console: Console) -> ProgressView:
    """The view that suits where the output goes."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def duration(seconds: float) -> str:
    """A duration as a person reads it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
