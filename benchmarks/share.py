"""How much of a run's wall time is spent inside the model, from a real run of the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

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
        _attrib_batch("pairs", "make", "ioi", "--count", str(N_PAIRS), "--out", str(folder / "pairs.parquet"))
        job = {
            "name": "benchmark",
            "models": [{"id": model_id, "prepend_bos": False, "device": "cpu", "workers": {"count": 1, "cpus": 2}}],
            "datasets": [{"id": "ioi", "path": str(folder / "pairs.parquet")}],
            "methods": [{"id": "atp"}],
            "chunk_pairs": CHUNK_PAIRS,
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        _attrib_batch("run", str(folder / "job.yaml"), "--out", str(folder / "out"))
        (record,) = (folder / "out" / "executions").glob("*.json")
        return RunShare(N_PAIRS, json.loads(record.read_text(encoding="utf-8"))["model_share"])


def _attrib_batch(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "attrib_batch", *arguments], check=True, stdout=subprocess.DEVNULL)
