"""How much of a run's wall time is spent inside the model, from a real run of the command line."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import attrib_batch, write_job

N_PAIRS = 512
CHUNK_PAIRS = 128


@dataclass(frozen=True)
class RunShare:
    """One run: a worker of two processors, generated pairs of many lengths."""

    n_pairs: int
    model_share: float
    """From the worker's being ready to its last commit."""


def model_share(model_id: str) -> RunShare:
    """Make pairs, run a job on them, and read what the run recorded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = folder / "pairs.parquet"
        attrib_batch("pairs", "make", "ioi", "--count", str(N_PAIRS), "--out", pairs)
        model = {"id": model_id, "workers": {"count": 1, "cpus": 2}}
        job = write_job(folder / "job.yaml", model, pairs, chunk_pairs=CHUNK_PAIRS)
        attrib_batch("run", job, "--out", folder / "out")
        (record,) = (folder / "out" / "executions").glob("*.json")
        return RunShare(N_PAIRS, json.loads(record.read_text(encoding="utf-8"))["model_share"])
