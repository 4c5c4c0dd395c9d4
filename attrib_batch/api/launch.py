"""Run what was opened, as a caller in a script or a notebook expects it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from attrib_batch.errors import StoppedError
from attrib_batch.execution.driver import run_stages
from attrib_batch.observe.progress import NoProgress, make_progress

if TYPE_CHECKING:
    from attrib_batch.execution.driver import RunResult
    from attrib_batch.execution.executor import Executor
    from attrib_batch.execution.planning.stages import OpenRun
    from attrib_batch.observe.progress import ProgressView


def run_to_end(opened: OpenRun, executor: Executor, progress: bool | ProgressView) -> RunResult:
    """Run what was opened; raise KeyboardInterrupt where a signal stopped it."""
    try:
        return run_stages(opened, executor, progress_view(progress), keep_process=_is_interactive())
    except StoppedError as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


def _is_interactive() -> bool:
    """Return whether a person works in this process, which a second interrupt must not end."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def progress_view(progress: bool | ProgressView) -> ProgressView:
    """Return the view that a caller asks for."""
    if isinstance(progress, bool):
        return make_progress(Console(stderr=True)) if progress else NoProgress()
    return progress
