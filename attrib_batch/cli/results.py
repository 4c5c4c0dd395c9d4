"""``status``, ``summarize`` and ``report``: what a run's files tell. Nothing here needs torch or ray."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from attrib_batch.tables import SCORING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.observe.status import CellStatus, RunStatus

Out = Annotated[str, typer.Argument(metavar="OUT", help="The run's directory, or s3:// or gs://bucket/folder.")]


def status(
    out: Out,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until no driver is at work.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often --watch looks.")] = 5.0,
) -> int:
    """Show from the files alone how far a run is."""
    from attrib_batch.observe.status import read_status

    console = Console()
    found = read_status(out)
    _show(found)
    while watch and found.running:
        time.sleep(every)
        found = read_status(out)
        if console.is_terminal:
            console.clear()
        else:
            typer.echo()
        _show(found)
    return int(found.exit_code)


def _show(found: RunStatus) -> None:
    for line in _lines(found):
        typer.echo(line)


def _lines(found: RunStatus) -> Iterator[str]:
    for cell in found.cells:
        yield (
            f"{cell.cell}{_of_stage(cell)}: {cell.scored:,} scored, {cell.failed:,} failed, {cell.waiting:,} waiting "
            f"of {cell.expected:,} pairs"
        )
    if found.reasons:
        yield "failures: " + ", ".join(f"{n:,} {reason}" for reason, n in found.reasons.most_common())
    yield _driver(found)
    if found.in_flight:
        workers = {(task.model, task.worker) for task in found.in_flight}
        n_pairs = sum(task.n_pairs for task in found.in_flight)
        yield f"in flight: {n_pairs:,} pairs in {len(found.in_flight):,} chunks, on {len(workers):,} workers"
    for job in found.remote_jobs:
        yield f"{job.model}: {job.n_pairs:,} pairs in job {job.describe()}"
    yield from _history(found)


def _of_stage(cell: CellStatus) -> str:
    return "" if cell.stage == SCORING else f" ({cell.stage})"


def _driver(found: RunStatus) -> str:
    holder = found.holder
    if holder is None:
        return "no driver is at work"
    who = f"process {holder.pid} on {holder.host}"
    if found.running:
        return f"{who} is at work"
    return f"no driver is at work: {who} ended without giving back its lease, and the same command resumes"


def _history(found: RunStatus) -> Iterator[str]:
    from attrib_batch.observe.progress import duration

    if found.pairs_per_second is not None:
        left = f", about {duration(found.seconds_left)} left" if found.seconds_left is not None else ""
        yield f"{'speed' if found.running else 'last speed'}: {found.pairs_per_second:.1f} pairs/s{left}"
    if (history := found.history) is None:
        return
    if history.messages:
        yield "last errors:"
    for message in history.messages:
        yield f"  {message.at:%Y-%m-%d %H:%M:%SZ} {message.event}: {' '.join(message.text.split())}"


def summarize(out: Out) -> None:
    """Summarise the scores into OUT/summary."""
    from attrib_batch.analysis import summarize as summarize_run
    from attrib_batch.storage.store import Store

    summarize_run(out)
    typer.echo(f"summary: {Store.parse(out).path('summary')}")


def report(out: Out) -> None:
    """Write OUT/report.html, one page that opens without a network."""
    from attrib_batch.report import write_report

    typer.echo(f"report: {write_report(out)}")
