"""A job as an object: what a job file asks for, and running it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attrib_batch.analysis import write_agreement
from attrib_batch.api.launch import run_to_end
from attrib_batch.api.run import Run
from attrib_batch.execution.local import LastModel, executor_of_run
from attrib_batch.execution.planning.opening import open_run as open_for_execution
from attrib_batch.spec import load_spec, parse_spec
from attrib_batch.tables import VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from attrib_batch.execution.executor import Executor
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.observe.progress import ProgressView
    from attrib_batch.spec import SweepSpec


@dataclass(frozen=True)
class Job:
    """A sweep that can be run: every model on every dataset with every method."""

    spec: SweepSpec
    models: Mapping[str, LoadedModel] = field(default_factory=dict)
    """Models that are in memory already, by their name in the job."""

    def run(
        self,
        out: str | Path,
        *,
        executor: Executor | None = None,
        progress: bool | ProgressView = True,
        retry_failures: bool = False,
        ndif_host: str | None = None,
    ) -> Run:
        """Score every pair that is not scored yet.

        The same call on the same directory goes on where it stopped; one of a job with more models, datasets, methods
        or pairs computes what is missing.

        Args:
            out: the run's directory, or s3:// or gs://bucket/folder.
            executor: gives the workers; by default one in this process, without Ray.
            progress: whether to show how far the run is; or a view that does.
            retry_failures: compute chunks with pairs in failures again.
            ndif_host: the NDIF server of models that lie on one; ``NDIF_HOST`` of the environment by default.

        Returns:
            The run. Pairs that could not be scored are in its failures.

        Raises:
            RequestError: the datasets, models or output do not allow the job, or do not match what is there.
            RunInterruptedError: the run could not finish. What is committed stays, and the same call goes on.
            KeyboardInterrupt: likewise, by Ctrl-C.
        """
        last = LastModel()
        executor = executor or executor_of_run(self.models, last)
        opened = open_for_execution(
            self.spec,
            out,
            ndif_host=ndif_host,
            retry_failures=retry_failures,
            workers_here=executor.workers_here,
            given=self.models,
        )
        result = run_to_end(opened, executor, progress)
        run = Run(opened.store, models=self.models, last=last, result=result)
        if VERIFICATION in result.stages and self.spec.verify is not None:
            write_agreement(opened.store, seed=self.spec.verify.seed)
        return run


def load_job(source: str | Path | Mapping[str, Any]) -> Job:
    """Read a job file, or check a job's data.

    Args:
        source: the path of a YAML file, or what such a file holds.

    Raises:
        JobError: naming the file, the key and what was expected.
    """
    if isinstance(source, dict):
        return Job(parse_spec(source, source="job"))
    return Job(load_spec(source))  # type: ignore[arg-type]  # a mapping of another class is refused there
