"""The Python interface: what the command line does, as calls.

Quick start::

    import attrib_batch as ab

    run = ab.attribute("smollm2-135m", "pairs.parquet")
    run.heatmap("z", at="last")
"""

from attrib_batch.api.attribution import attribute
from attrib_batch.api.job import Job, load_job
from attrib_batch.api.run import Run, open_run
from attrib_batch.execution.local import LocalExecutor

__all__ = ["Job", "LocalExecutor", "RayExecutor", "Run", "attribute", "load_job", "open_run"]


def __getattr__(name: str) -> object:
    """Import the executor of Ray clusters once it is asked for."""
    if name == "RayExecutor":
        from attrib_batch.execution.ray.executor import RayExecutor

        return RayExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
