"""``plan``, ``run``, ``demo`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from attrib_batch.cli.named import named_values
from attrib_batch.spec import load_demo, load_spec

if TYPE_CHECKING:
    from attrib_batch.errors import ExitCode
    from attrib_batch.execution.driver import RunResult
    from attrib_batch.execution.planning.inputs import Places
    from attrib_batch.spec import SweepSpec

JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).")]
Out = Annotated[str, typer.Option("--out", help="The run's directory, or s3:// or gs://bucket/folder.", metavar="OUT")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join; Ray starts here where absent.")]
NdifHost = Annotated[
    str | None,
    typer.Option(
        help="The NDIF server of models with workers of kind ndif; NDIF_HOST where absent. The key is NDIF_API_KEY."
    ),
]

DEMO_VERIFIED_PAIRS = 8


def plan(job: JobPath) -> None:
    """Show pairs, chunks, rows and expected bytes, without running a model."""
    from attrib_batch.execution.planning.estimate import estimate_job

    console = Console()
    table = RichTable("model", "dataset", "method", "pairs", "chunks", "score rows", "bytes (about)", box=None)
    total_rows = total_bytes = 0
    for item in estimate_job(load_spec(job)):
        cell = item.plan.cell
        table.add_row(
            cell.model, cell.dataset, cell.method,
            f"{item.plan.n_pairs:,}", f"{item.plan.n_chunks:,}", f"{item.score_rows:,}", f"{item.score_bytes:,}",
        )  # fmt: skip
        total_rows += item.score_rows
        total_bytes += item.score_bytes
    console.print(table)
    console.print(f"together {total_rows:,} score rows, about {total_bytes:,} bytes", highlight=False)


def run(
    job: JobPath,
    out: Out,
    address: Address = None,
    ndif_host: NdifHost = None,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Compute chunks with pairs in failures again.")
    ] = False,
) -> int:
    """Score every pair of a job that is not scored yet; run it again to resume."""
    result = _run(load_spec(job), out, address, ndif_host, retry_failures=retry_failures)
    return int(result.exit_code)


def demo(out: Annotated[str, typer.Option("--out", help="The run's directory.")] = "runs/demo") -> int:
    """Run the demo's job on the bundled model, from any folder, and write its report."""
    from attrib_batch.report import write_report

    result = _run(load_demo(), out)
    verified = _verify(out, DEMO_VERIFIED_PAIRS, 0)
    page = write_report(out)
    typer.echo(f"report: {page}")
    return int(max(result.exit_code, verified))


def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The run's directory.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to measure from each dataset.")] = 32,
    seed: Annotated[int, typer.Option(help="The same seed samples the same pairs.")] = 0,
    *,
    address: Address = None,
    ndif_host: NdifHost = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="ID=PATH", help="Where a dataset lies now, if not where the run read it."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=PATH", help="Where a local model's folder lies now, likewise."),
    ] = None,
) -> int:
    """Measure a sample of pairs with activation patching, and compare: can the scores be trusted?"""
    from attrib_batch.execution.planning.inputs import Places

    places = Places(
        dict(named_values("--dataset", "ID=PATH", datasets or [])),
        dict(named_values("--model", "NAME=PATH", models or [])),
    )
    return int(_verify(out, pairs, seed, address=address, ndif_host=ndif_host, places=places))


def doctor() -> int:
    """Check this machine: packages, the bundled model, GPUs, Ray."""
    from attrib_batch.observe.doctor import examine

    console = Console()
    findings = examine()
    for finding in findings:
        mark = "[green]ok[/]  " if finding.ok else "[red]no[/]  "
        console.print(f"{mark}{finding.what}: {finding.detail}", highlight=False, soft_wrap=True)
    return 0 if all(finding.ok for finding in findings if finding.needed) else 2


def _verify(
    out: str,
    n_pairs: int,
    seed: int,
    *,
    address: str | None = None,
    ndif_host: str | None = None,
    places: Places | None = None,
) -> ExitCode:
    from attrib_batch.analysis.agreement import write_agreement
    from attrib_batch.execution.driver import run_prepared
    from attrib_batch.execution.planning.verify import prepare_verification
    from attrib_batch.observe.progress import make_progress

    verification = prepare_verification(
        out, n_pairs=n_pairs, seed=seed, ndif_host=ndif_host, places=places, workers_here=address is None
    )
    result = run_prepared(verification.prepared, make_progress(Console(stderr=True)), address=address)
    verification.publish()
    agreement = write_agreement(out, seed=seed)
    typer.echo(f"{result.scored:,} pairs measured by activation patching, {result.failed:,} in failures -> {agreement}")
    return result.exit_code


def _run(
    job: SweepSpec,
    out: str,
    address: str | None = None,
    ndif_host: str | None = None,
    *,
    retry_failures: bool = False,
) -> RunResult:
    from attrib_batch.execution.driver import run_prepared
    from attrib_batch.execution.planning.prepare import prepare_run
    from attrib_batch.observe.progress import duration, make_progress

    console = Console(stderr=True)
    prepared = prepare_run(job, out, ndif_host=ndif_host, retry_failures=retry_failures, workers_here=address is None)
    result = run_prepared(prepared, make_progress(console), address=address)
    typer.echo(
        f"{result.scored:,} of {result.expected:,} pairs scored, {result.failed:,} in failures; "
        f"{duration(result.tally.seconds)} -> {out}"
    )
    return result
