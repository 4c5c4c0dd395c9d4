"""How far a run is: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console

    from attrib_batch.execution.tally import Tally

LINE_SECONDS = 10.0
"""Least time between two plain lines."""


def describe(tally: Tally, *, at_end: bool = False) -> str:
    """One line: done of total, failures, speed, time left.

    While the run goes on the speed is that of the models at work now, at its end that of the whole execution.
    """
    parts = [f"{tally.done:,} of {tally.total:,} pairs"]
    if tally.failed:
        parts.append(f"{tally.failed:,} failed")
    if speed := tally.pairs_per_second if at_end else tally.speeds.now:
        parts.append(f"{speed:.1f} pairs/s")
    if not at_end and tally.done < tally.total and (left := tally.seconds_left) is not None:
        parts.append(f"{duration(left)} left")
    if tally.elsewhere:
        parts.append(tally.elsewhere)
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
            self.note(describe(tally))

    def close(self, tally: Tally) -> None:
        """Print the last line."""
        self.note(describe(tally, at_end=True))


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
        self._show(tally, describe(tally))

    def close(self, tally: Tally) -> None:
        """Leave the bar as it stands."""
        self._show(tally, describe(tally, at_end=True))
        self._progress.stop()

    def _show(self, tally: Tally, line: str) -> None:
        detail = line.partition(", ")[2] or "starting workers"
        self._progress.update(self._task, total=tally.total, completed=tally.done, detail=detail)


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
