"""``python -m benchmarks.scale``: what a run of a million pairs costs beside its model.

The model of the long run is tiny and random, so that the machinery is measured: the driver, the workers' reading and
writing, Ray, the files. Its driver is killed with SIGKILL when 99 % of the pairs are committed, and the same command
goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from attrib_batch.errors import ExitCode
from attrib_batch.spec import SweepSpec
from benchmarks import machine
from benchmarks.commands import attrib_batch, read_log, watch, write_job
from benchmarks.page import RESULTS, replace_part
from benchmarks.tables import render_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.commands import Event, Sample, Watched

N_WORKERS = 2
KILLED_AT = 0.99
SHOWN_AT = (0.1, 0.25, 0.5, 0.75, 0.99)
STEADY_AT = 0.25
"""Growth is measured from here on: before, caches fill."""


@dataclass(frozen=True)
class Moment:
    """What the run took when so many pairs were done, in MiB."""

    n_pairs: int
    driver: float
    worker: float
    """The larger one."""
    services: float
    """Ray's own processes: the raylet and the control store."""


@dataclass(frozen=True)
class Scale:
    """The long run."""

    n_pairs: int
    n_chunks: int
    moments: list[Moment]
    driver_growth: float
    """MiB for every 100,000 pairs, by least squares over the last three quarters."""
    worker_growth: float
    driver_cpu_per_chunk: float
    """Seconds of processor time."""
    pairs_per_second: float
    n_rows: int
    score_bytes: int
    n_files: int
    status_seconds: float
    """Of the whole command, on the run that was killed."""
    resume_seconds: float
    """From the command's start to the first task that is given to a worker."""
    rest_seconds: float
    """Of the whole command that does the last percent."""
    nothing_seconds: float
    """Of the same command when everything is done."""
    summarize: Watched
    report: Watched


def measure(n_pairs: int, folder: Path) -> Scale:
    """Make pairs and a model, run, kill, look, resume, analyse."""
    from benchmarks.tiny import save_model

    pairs, out = folder / "pairs.parquet", folder / "out"
    attrib_batch("pairs", "make", "ioi", "--count", str(n_pairs), "--out", pairs)
    save_model(folder / "model", pairs)
    model = {"id": str(folder / "model"), "name": "tiny", "workers": {"count": N_WORKERS, "cpus": 1}}
    job = write_job(folder / "job.yaml", model, pairs)
    partition = out / "scores/model=tiny/dataset=ioi/method=atp"
    n_chunks = -(-n_pairs // SweepSpec.model_fields["chunk_pairs"].default)

    def nearly_done() -> bool:
        return partition.is_dir() and sum(1 for _ in partition.iterdir()) >= KILLED_AT * n_chunks

    first = watch("run", job, "--out", out, until=nearly_done)
    events = read_log(out)
    status_seconds = attrib_batch("status", out, code=ExitCode.UNFINISHED)
    again = watch("run", job, "--out", out)
    given = [event.at for event in read_log(out) if event.what == "task_given"]
    if not given:
        raise RuntimeError("the workers had finished before the driver was killed: take more pairs")
    nothing_seconds = attrib_batch("run", job, "--out", out)
    parts = list(partition.glob("part-*.parquet"))
    return Scale(
        n_pairs=n_pairs,
        n_chunks=n_chunks,
        **_while_it_ran(events, first.samples),
        n_rows=sum(pq.read_metadata(part).num_rows for part in parts),
        score_bytes=sum(part.stat().st_size for part in parts),
        n_files=sum(len(files) for _, _, files in os.walk(out)),
        status_seconds=status_seconds,
        resume_seconds=given[0] - again.started,
        rest_seconds=again.seconds,
        nothing_seconds=nothing_seconds,
        summarize=watch("summarize", out, sample_seconds=0.05),
        report=watch("report", out, sample_seconds=0.05),
    )


def _while_it_ran(events: Sequence[Event], samples: Sequence[Sample]) -> dict[str, Any]:
    """Memory, processor time and speed up to the moment at which the driver was killed."""
    commits = [event for event in events if event.what == "task_committed"]
    ready = min(event.at for event in events if event.what == "worker_ready")
    steady = [sample for sample in samples if ready < sample.at <= commits[-1].at]
    done = [sum(commit.pairs for commit in commits if commit.at <= sample.at) for sample in steady]
    total = done[-1] / KILLED_AT
    moments = []
    for share in SHOWN_AT:
        index = next((i for i, n_pairs in enumerate(done) if n_pairs >= share * total), -1)
        sample = steady[index]
        moments.append(Moment(done[index], sample.driver, sample.worker, sample.services))
    late = [i for i, n_pairs in enumerate(done) if n_pairs >= STEADY_AT * total]

    def growth(values: list[float]) -> float:
        return statistics.linear_regression([done[i] / 100_000 for i in late], [values[i] for i in late]).slope

    n_between = sum(steady[0].at < commit.at <= steady[-1].at for commit in commits)
    return {
        "moments": moments,
        "driver_growth": growth([sample.driver for sample in steady]),
        "worker_growth": growth([sample.worker for sample in steady]),
        "driver_cpu_per_chunk": (steady[-1].driver_cpu - steady[0].driver_cpu) / n_between,
        "pairs_per_second": sum(commit.pairs for commit in commits) / (commits[-1].at - ready),
    }


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs of the long run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        scale = measure(options.pairs, Path(folder))
    text = render_scale(machine.describe(), scale)
    replace_part(options.out, "scale", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
