"""``plan``, ``run``, ``demo`` and ``doctor``."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from attrib_batch.cli.named import named_values
from attrib_batch.cli.results import report
from attrib_batch.errors import ExitCode, RequestError
from attrib_batch.observe.progress import duration
from attrib_batch.spec import DEFAULT_VERIFIED_PAIRS, load_demo, load_spec
from attrib_batch.spec.positions import ALL
from attrib_batch.tables import SCORING, VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.api import Run
    from attrib_batch.execution.executor import Executor

JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).")]
Out = Annotated[str, typer.Option("--out", help="The run's directory, or s3:// or gs://bucket/folder.", metavar="OUT")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join; Ray starts here where absent.")]
NdifHost = Annotated[
    str | None,
    typer.Option(
        help="The NDIF server of models with workers of kind ndif; NDIF_HOST where absent. The key is NDIF_API_KEY."
    ),
]

Local = Annotated[bool, typer.Option("--local", help="Work in this process, with one worker and without Ray.")]


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
    *,
    local: Local = False,
) -> int:
    """Score every pair of a job that is not scored yet; run it again to resume, or with more in the job to go on."""
    from attrib_batch.api import load_job

    with _stopped_is_an_error():
        made = load_job(job).run(
            out, executor=_executor(address, local=local), retry_failures=retry_failures, ndif_host=ndif_host
        )
    return int(_print_result(made, out))


def demo(
    out: Annotated[str, typer.Option("--out", help="The run's directory.")] = "runs/demo", *, local: Local = False
) -> int:
    """Run the demo's job on the bundled model, from any folder, check a sample of it, and write its report."""
    from attrib_batch.api import Job
    from attrib_batch.cli import story

    job = load_demo()
    for line in story.before(job, local=local):
        typer.echo(line)
    with _stopped_is_an_error():
        made = Job(job).run(out, executor=_executor(None, local=local))
    code = _print_result(made, out)
    if code is ExitCode.OK:
        for line in story.after(made, job, out, local=local):
            typer.echo(line)
    report(out)
    return int(code)


def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The run's directory.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to measure from each dataset.")] = DEFAULT_VERIFIED_PAIRS,
    seed: Annotated[int, typer.Option(help="The same seed samples the same pairs.")] = 0,
    *,
    at: Annotated[
        list[str] | None, typer.Option(help="Positions to measure: all, last, or a role; roles may be given often.")
    ] = None,
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
    local: Local = False,
) -> int:
    """Measure a sample of pairs with activation patching, and compare: can the scores be trusted?"""
    from attrib_batch.api import open_run
    from attrib_batch.execution.planning.inputs import InputLocations

    locations = InputLocations(
        dict(named_values("--dataset", "ID=PATH", datasets or [])),
        dict(named_values("--model", "NAME=PATH", models or [])),
    )
    made = open_run(out)
    executor = _executor(address, local=local)
    with _stopped_is_an_error():
        made.verify(pairs, seed=seed, at=_positions(at), executor=executor, locations=locations, ndif_host=ndif_host)
    return int(_print_result(made, out))


def doctor() -> int:
    """Check this machine: packages, the bundled model, GPUs, Ray."""
    from attrib_batch.observe.doctor import examine

    console = Console()
    findings = examine()
    for finding in findings:
        mark = "[green]ok[/]  " if finding.ok else "[red]no[/]  "
        console.print(f"{mark}{finding.subject}: {finding.detail}", highlight=False, soft_wrap=True)
    return 0 if all(finding.ok for finding in findings if finding.needed) else 2


def _positions(given: list[str] | None) -> str | list[str]:
    """Return the positions that ``--at`` names, all where it is not given."""
    if not given:
        return ALL
    return given[0] if len(given) == 1 else given


@contextmanager
def _stopped_is_an_error() -> Iterator[None]:
    """Raise the StoppedError behind a KeyboardInterrupt, whose message says how to go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise (stopped.__cause__ or stopped) from None


def _executor(address: str | None, *, local: bool) -> Executor:
    """Return the executor that options ask for."""
    if local:
        if address is not None:
            raise RequestError("--local and --address: choose one; with --local there is no cluster")
        from attrib_batch.execution.local import LocalExecutor

        return LocalExecutor()
    from attrib_batch.execution.ray.executor import RayExecutor

    return RayExecutor(address)


def _print_result(made: Run, out: str) -> ExitCode:
    """Print how the stages of an execution ended, and return its exit code."""
    result = made.result
    if result is None:
        raise AssertionError("an execution leaves a result")
    if scoring := result.stages.get(SCORING):
        typer.echo(
            f"{scoring.scored:,} of {scoring.expected:,} pairs scored, {scoring.failed:,} in failures; "
            f"{duration(result.tally.seconds)} -> {out}"
        )
    if measured := result.stages.get(VERIFICATION):
        typer.echo(
            f"{measured.scored:,} pairs measured by activation patching, {measured.failed:,} in failures -> "
            f"{made.agreement_path}"
        )
    return result.exit_code
