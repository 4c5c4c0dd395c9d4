"""How far a run is: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 10.0
"""Least time between two plain lines."""


@dataclass(frozen=True)
class Snapshot:
    """How far an execution is."""

    stage: str
    done: int
    """Pairs that are in scores or failures now, counted once for each method."""
    total: int
    failed: int
    pairs_per_second: float | None
    seconds_left: float | None
    """Estimated time to the end; None while it is not known, and at the end."""
    elsewhere: str = ""
    """What is under way on a server."""


def describe(snapshot: Snapshot) -> str:
    """Return one line: done of total, failures, speed, time left."""
    parts = [f"{snapshot.done:,} of {snapshot.total:,} pairs"]
    if snapshot.failed:
        parts.append(f"{snapshot.failed:,} failed")
    if snapshot.pairs_per_second:
        parts.append(f"{snapshot.pairs_per_second:.1f} pairs/s")
    if snapshot.seconds_left is not None and snapshot.done < snapshot.total:
        parts.append(f"{duration(snapshot.seconds_left)} left")
    if snapshot.elsewhere:
        parts.append(snapshot.elsewhere)
    return ", ".join(parts)


class ProgressView(Protocol):
    """Shows a run to a person."""

    def note(self, message: str) -> None:
        """Show a message."""

    def update(self, snapshot: Snapshot) -> None:
        """Show how far the run is."""

    def close(self, snapshot: Snapshot) -> None:
        """Show the end state and stop."""


class PlainProgress:
    """A line now and then, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def note(self, message: str) -> None:
        """Print a message."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self.note(describe(snapshot))

    def close(self, snapshot: Snapshot) -> None:
        """Print the last line."""
        self.note(describe(snapshot))


class LiveProgress:
    """A bar that moves, for terminals."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("[bold]scoring", total=None, detail="starting workers")
        self._progress.start()

    def note(self, message: str) -> None:
        """Print a message above the bar."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        self._show(snapshot)

    def close(self, snapshot: Snapshot) -> None:
        """Leave the bar as it stands."""
        self._show(snapshot)
        self._progress.stop()

    def _show(self, snapshot: Snapshot) -> None:
        detail = describe(snapshot).partition(", ")[2] or "starting workers"
        self._progress.update(
            self._task,
            description=f"[bold]{snapshot.stage}",
            total=snapshot.total,
            completed=snapshot.done,
            detail=detail,
        )


class NoProgress:
    """Shows nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def close(self, snapshot: Snapshot) -> None:
        """Do nothing."""


def make_progress(console: Console) -> ProgressView:
    """Return the view that suits where the output goes."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def duration(seconds: float) -> str:
    """Format a duration for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
