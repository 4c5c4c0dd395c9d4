"""Peak memory of the engine, a process of its own for each batch size."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from attrib_batch.execution.workers.task import peak_memory

BATCH_SIZES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Peak:
    """Resident memory of a process, in MiB."""

    n_pairs: int
    loaded: float
    """Its peak once the model is loaded and has scored one pair."""
    scored: float
    """Its peak after a batch."""


def peaks(model_id: str) -> list[Peak]:
    """Measure every batch size."""
    found = []
    for n_pairs in BATCH_SIZES:
        command = [sys.executable, "-m", "benchmarks.memory", model_id, str(n_pairs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(Peak(**json.loads(done.stdout.splitlines()[-1])))
    return found


def _measure(model_id: str, n_pairs: int) -> Peak:
    from benchmarks import recipes, workloads
    from benchmarks.models import load

    model = load(model_id)
    recipes.engine(model, workloads.plain(model, 1))
    loaded = peak_memory()
    recipes.engine(model, workloads.plain(model, n_pairs))
    return Peak(n_pairs, loaded / 2**20, peak_memory() / 2**20)


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(sys.argv[1], int(sys.argv[2])))))
