"""``status``, ``summarize`` and ``report``: what a run's files tell. Nothing here needs torch or ray."""

from __future__ import annotations

from typing import Annotated

import typer

Out = Annotated[str, typer.Argument(metavar="OUT", help="The run's directory, or s3:// or gs://bucket/folder.")]


def status(out: Out) -> int:
    """Show from the files alone how far a run is."""
    from attrib_batch.run.status import read_status

    found = read_status(out)
    for cell in found.cells:
        typer.echo(
            f"{cell.cell}: {cell.scored:,} scored, {cell.failed:,} failed, {cell.waiting:,} waiting "
            f"of {cell.expected:,} pairs"
        )
    for job in found.remote_jobs:
        typer.echo(f"{job.model}: {job.n_pairs:,} pairs in job {job.describe()}")
    return int(found.exit_code)


def summarize(out: Out) -> None:
    """Summarise the scores into OUT/summary."""
    from attrib_batch.analysis import summarize as summarize_run
    from attrib_batch.store import Store

    summarize_run(out)
    typer.echo(f"summary: {Store.parse(out).path('summary')}")


def report(out: Out) -> None:
    """Write OUT/report.html, one page that opens without a network."""
    from attrib_batch.report import write_report

    typer.echo(f"report: {write_report(out)}")
