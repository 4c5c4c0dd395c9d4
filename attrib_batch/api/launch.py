"""Run what was opened, as a caller in a script or a notebook expects it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from attrib_batch.errors import RequestError, StoppedError
from attrib_batch.execution.driver import run_stages
from attrib_batch.execution.local import executor_of_run
from attrib_batch.execution.planning.verification import Verification, open_verification
from attrib_batch.observe.progress import NoProgress, make_progress
from attrib_batch.spec.positions import check_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.execution.driver import RunResult
    from attrib_batch.execution.executor import Executor
    from attrib_batch.execution.local import LastModel
    from attrib_batch.execution.planning.inputs import InputLocations
    from attrib_batch.execution.planning.stages import OpenRun
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.observe.progress import ProgressView
    from attrib_batch.storage.store import Store


def run_to_end(opened: OpenRun, executor: Executor, progress: bool | ProgressView) -> RunResult:
    """Run what was opened; raise KeyboardInterrupt where a signal stopped it."""
    try:
        return run_stages(opened, executor, progress_view(progress), keep_process=_is_interactive())
    except StoppedError as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


def measure(
    store: Store,
    models: Mapping[str, LoadedModel],
    last: LastModel,
    *,
    pairs: int,
    seed: int,
    at: str | Sequence[str],
    executor: Executor | None,
    progress: bool | ProgressView,
    locations: InputLocations | None,
    ndif_host: str | None,
) -> RunResult:
    """Measure a sample of a run's pairs with activation patching; arguments as for `Run.verify`."""
    try:
        positions = check_at(at if isinstance(at, str) else list(at))
    except ValueError as error:
        raise RequestError(f"at: {error}") from error
    executor = executor or executor_of_run(models, last)
    opened = open_verification(
        store,
        Verification(pairs, seed, positions),
        ndif_host=ndif_host,
        locations=locations,
        workers_here=executor.workers_here,
        given=models,
    )
    return run_to_end(opened, executor, progress)


def _is_interactive() -> bool:
    """Return whether a person works in this process, which a second interrupt must not end."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def progress_view(progress: bool | ProgressView) -> ProgressView:
    """Return the view that a caller asks for."""
    if isinstance(progress, bool):
        return make_progress(Console(stderr=True)) if progress else NoProgress()
    return progress
