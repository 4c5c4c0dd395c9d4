"""``python -m benchmarks.second_worker``: one worker of one thread beside two of one thread each."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.commands import attrib_batch, read_log, write_job
from benchmarks.models import MODEL_ID
from benchmarks.page import RESULTS, replace_part
from benchmarks.tables import render_second_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.commands import Event


@dataclass(frozen=True)
class SecondWorker:
    """Pairs a second, in each round."""

    one: list[float]
    two: list[float]
    n_pairs: int
    chunk_pairs: int

    @property
    def ratios(self) -> list[float]:
        """Two workers beside one, round by round."""
        return [two / one for one, two in zip(self.one, self.two, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.ratios)


def measure(folder: Path, *, n_pairs: int, chunk_pairs: int, n_rounds: int) -> SecondWorker:
    """Run the same job with one worker and with two, in alternating rounds."""
    pairs = folder / "pairs.parquet"
    attrib_batch("pairs", "make", "ioi", "--count", str(n_pairs), "--out", pairs)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(n_rounds):
        for count, found in speeds.items():
            model = {"id": MODEL_ID, "workers": {"count": count, "cpus": 1}}
            job = write_job(folder / "job.yaml", model, pairs, chunk_pairs=chunk_pairs)
            out = folder / f"out-{number}-{count}"
            attrib_batch("run", job, "--out", out)
            found.append(steady_speed(read_log(out)))
    return SecondWorker(speeds[1], speeds[2], n_pairs, chunk_pairs)


def steady_speed(events: Sequence[Event]) -> float:
    """Pairs a second of all workers together, each from its own first commit to its own last.

    One interval for all would cut off a chunk that is nearly done, and workers that go in step have one each.
    """
    commits = [event for event in events if event.what == "task_committed"]
    speed = 0.0
    for worker in {commit.worker for commit in commits}:
        first, *later = [commit for commit in commits if commit.worker == worker]
        speed += sum(commit.pairs for commit in later) / (later[-1].at - first.at)
    return speed


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second_worker", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1024, help="pairs of a run")
    parser.add_argument("--chunk-pairs", type=int, default=128, help="pairs of a chunk: few make small batches")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of one worker beside two")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        second = measure(Path(folder), n_pairs=options.pairs, chunk_pairs=options.chunk_pairs, n_rounds=options.rounds)
    text = render_second_worker(machine.describe(), MODEL_ID, second)
    replace_part(options.out, "workers", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
