"""``submit``: a job on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attrib_batch.cli.runs import JobPath, NdifHost  # noqa: TC001 - typer reads them
from attrib_batch.errors import ExitCode
from attrib_batch.spec import load_spec


def submit(
    job: JobPath,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265.")],
    out: Annotated[str, typer.Option(metavar="OUT", help="s3://..., gs://..., or a path that every node has.")],
    ndif_host: NdifHost = None,
    *,
    out_is_shared: Annotated[
        bool, typer.Option(help="Absolute paths (OUT, datasets, models) are the same files on every node.")
    ] = False,
) -> int:
    """Run a job on a Ray cluster and follow it; submit it again to resume.

    A copy of this folder goes with it, with the tables and models that the job names, but without other data, runs,
    hidden files and keys; outside a checkout also the installed attrib_batch. The job ends with the exit code of run.

    Ray shows the variables of a job to everyone who may ask about it. So NDIF_API_KEY does not travel: set it where the
    cluster's head starts Ray (cluster.yaml reads ~/.ndif_api_key there); workers get it from the run.

    Where the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here too.
    """
    from attrib_batch.execution.ray.submit import ClusterJobs, check_paths, how_to_go_on, submit_job

    checked = load_spec(job)
    # What is wrong whatever the cluster is like is said before it is asked.
    check_paths(checked, out, Path.cwd(), shared=lambda: True)
    jobs = ClusterJobs(address)
    check_paths(checked, out, Path.cwd(), shared=lambda: out_is_shared or jobs.is_here())

    def print_line(line: str) -> None:
        typer.echo(line, err=True)

    job_id = submit_job(checked, job, jobs, out=out, ndif_host=ndif_host, report=print_line)
    try:
        return int(jobs.follow(job_id, _write))
    except KeyboardInterrupt:
        print_line(how_to_go_on(jobs, job_id))
        return int(ExitCode.UNFINISHED)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
