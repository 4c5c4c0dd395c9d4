"""What a second worker brings: one of one thread beside two of one thread each, on the bundled model."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.commands import attrib_batch, read_log, write_job
from benchmarks.models import MODEL_ID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.commands import Event

N_PAIRS, CHUNK_PAIRS = 512, 32


@dataclass(frozen=True)
class SecondWorker:
    """Pairs a second, in each round."""

    one: list[float]
    two: list[float]

    @property
    def ratios(self) -> list[float]:
        """Two workers beside one, round by round."""
        return [two / one for one, two in zip(self.one, self.two, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.ratios)


def measure(folder: Path, *, n_rounds: int) -> SecondWorker:
    """Run the same job with one worker and with two, in alternating rounds."""
    pairs = folder / "pairs.parquet"
    attrib_batch("pairs", "make", "ioi", "--count", str(N_PAIRS), "--out", pairs)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(n_rounds):
        for count, found in speeds.items():
            model = {"id": MODEL_ID, "workers": {"count": count, "cpus": 1}}
            job = write_job(folder / "job.yaml", model, pairs, chunk_pairs=CHUNK_PAIRS)
            out = folder / f"out-{number}-{count}"
            attrib_batch("run", job, "--out", out)
            found.append(_steady_speed(read_log(out)))
    return SecondWorker(speeds[1], speeds[2])


def _steady_speed(events: Sequence[Event]) -> float:
    """Pairs a second while every worker was at work: after each one's first commit, before one had its last."""
    commits = [event for event in events if event.what == "task_committed"]
    times = [[c.at for c in commits if c.worker == worker] for worker in {c.worker for c in commits}]
    start, end = max(map(min, times)), min(map(max, times))
    return sum(c.pairs for c in commits if start < c.at <= end) / (end - start)
