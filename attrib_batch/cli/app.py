"""The verbs, and how errors become exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from attrib_batch._version import __version__
from attrib_batch.cli import pairs, results, runs
from attrib_batch.cli.examples import example
from attrib_batch.cli.export import export
from attrib_batch.cli.submit import submit
from attrib_batch.errors import AttribBatchError, ExitCode

app = typer.Typer(
    name="attrib-batch",
    help="Attribution patching over large tables of prompt pairs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(pairs.app, name="pairs")
for verb, arguments in (
    (runs.demo, "demo --out runs/demo"),
    (runs.plan, "plan job.yaml"),
    (runs.run, "run job.yaml --out runs/mine"),
    (submit, "submit job.yaml --address http://127.0.0.1:8265 --out s3://my-bucket/runs/mine"),
    (runs.verify, "verify runs/mine --pairs 64 --at last"),
    (runs.doctor, "doctor"),
    (results.status, "status runs/mine --watch"),
    (results.summarize, "summarize runs/mine"),
    (results.report, "report runs/mine"),
    (export, "export runs/mine --format csv --format png --at last"),
):
    app.command(epilog=example(arguments))(verb)


@app.callback(invoke_without_command=True)
def _version(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a known error becomes one message on stderr and its exit code."""
    try:
        code: int | None = app(standalone_mode=False)
    except AttribBatchError as error:
        _print_error(str(error))
        sys.exit(int(error.exit_code))
    except typer.TyperException as error:
        # The parser's own: an unknown verb, a missing argument. It knows how to show itself.
        error.show()  # type: ignore[attr-defined]  # public on every subclass the parser raises
        sys.exit(int(ExitCode.BAD_REQUEST))
    except typer.Abort:
        sys.exit(int(ExitCode.UNFINISHED))
    sys.exit(int(code or 0))


def _print_error(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
