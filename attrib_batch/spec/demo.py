"""The demo's job, which comes with the package together with its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.spec.job_file import load_spec

if TYPE_CHECKING:
    from attrib_batch.spec.sweep import SweepSpec

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
"""Where the job file and the tables lie that it names by paths relative to itself."""


def load_demo() -> SweepSpec:
    """Return the demo's job with the absolute paths of its tables, so that it runs from any folder."""
    job = load_spec(DEMO_FOLDER / "demo.yaml")
    datasets = tuple(
        dataset.model_copy(update={"path": str((DEMO_FOLDER / dataset.path).resolve())}) for dataset in job.datasets
    )
    return job.model_copy(update={"datasets": datasets})
