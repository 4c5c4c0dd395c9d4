"""``export``: a run's results for other programs. Nothing here needs torch or ray."""

from __future__ import annotations

from typing import Annotated

import typer

from attrib_batch.errors import RequestError

Out = Annotated[str, typer.Argument(metavar="OUT", help="The run's directory, or s3:// or gs://bucket/folder.")]


def export(
    out: Out,
    *,
    to: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where files go; OUT/export if not said.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="FORMAT", help="csv, json (top heads), png, svg (heatmaps), mib; may be given often."
        ),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", help="How many heads of each cell and component.")] = 20,
    at: Annotated[
        str | None, typer.Option(help="last, all or a role; else the first of end, last and all that is there.")
    ] = None,
    component: Annotated[str | None, typer.Option(help="One component; all that were scored if not said.")] = None,
    by: Annotated[str, typer.Option(help="Rank heads by magnitude, positive or negative mean.")] = "magnitude",
    node_order: Annotated[
        str, typer.Option(help="Nodes for MIB come by value or by magnitude; the file says which.")
    ] = "value",
    parallel: Annotated[
        bool, typer.Option("--parallel-attn-mlp", help="For MIB: attention and MLP of the model read the same input.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Heatmaps in metric units, not as shares of the gap.")] = False,
    model: Annotated[str | None, typer.Option(help="Only this model; likewise --dataset and --method.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
) -> None:
    """Write top heads (CSV, JSON), heatmaps (PNG, SVG) and node scores for the MIB benchmark.

    Images need kaleido (pip install 'attrib_batch[images]') and a Chrome or Chromium; without them all else is written.
    """
    from attrib_batch.report.export import FORMATS
    from attrib_batch.report.export import export as export_run

    names = {"model": model, "dataset": dataset, "method": method}
    try:
        done = export_run(
            out,
            to,
            formats=formats or FORMATS,
            n=top,
            at=at,
            component=component,
            by=by,
            node_order=node_order,  # type: ignore[arg-type]  # it is checked there
            parallel=parallel,
            normalized=not raw,
            **{key: value for key, value in names.items() if value is not None},
        )
    except ValueError as error:
        raise RequestError(str(error)) from error
    for path in done.files:
        typer.echo(f"written: {path}")
    for reason in done.left_out:
        typer.echo(f"left out: {reason}")
