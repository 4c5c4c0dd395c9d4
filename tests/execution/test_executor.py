"""What an exception of a worker means for a run, by its class and by what the worker was doing."""

from __future__ import annotations

import pytest

from attrib_batch import errors
from attrib_batch.errors import (
    AttribBatchError,
    DatasetError,
    DeviceLostError,
    ExitCode,
    JobError,
    ModelError,
    OutputError,
    RequestError,
    ResumeMismatchError,
    RunInterruptedError,
    ShardGroupError,
    ShardsDisagreeError,
    ShardsOutOfMemoryError,
    StoppedError,
    StorageError,
    TaskError,
)
from attrib_batch.execution.events import TaskFailed, TaskUnreadable, WorkerFailedToStart, WorkerId, WorkerLost
from attrib_batch.execution.executor import judge
from attrib_batch.execution.scheduling.assignment import Assignment
from attrib_batch.spec import Cell
from attrib_batch.tables import Chunk

WORKER = WorkerId("tiny", 3)
TASK = Assignment((Chunk(Cell("tiny", "random", "atp"), 0, 4),))
SAID = "what it said"


EVERY_CLASS = [
    found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, AttribBatchError)
]
"""Every exception of `attrib_batch.errors`."""


AT_WORK = {
    AttribBatchError: WorkerLost,
    RequestError: WorkerLost,
    JobError: WorkerLost,
    ResumeMismatchError: WorkerLost,
    DatasetError: TaskUnreadable,
    TaskError: TaskFailed,
    DeviceLostError: TaskFailed,
    ShardGroupError: WorkerLost,
    ShardsDisagreeError: WorkerLost,
    ShardsOutOfMemoryError: WorkerLost,
}
"""By exception of this package, the event. All others end the run."""
LOADING = {
    AttribBatchError: WorkerFailedToStart,
    TaskError: WorkerFailedToStart,
    DeviceLostError: WorkerFailedToStart,
    ShardGroupError: WorkerFailedToStart,
    ShardsDisagreeError: WorkerFailedToStart,
    ShardsOutOfMemoryError: WorkerFailedToStart,
}
ENDS = {
    ModelError: ModelError,
    OutputError: RunInterruptedError,
    StorageError: RunInterruptedError,
    RunInterruptedError: RunInterruptedError,
    StoppedError: StoppedError,
}
"""What ends the run whatever the worker was doing, and as what."""
ENDS_A_START = {**ENDS, RequestError: RequestError, JobError: JobError, DatasetError: DatasetError,
                ResumeMismatchError: ResumeMismatchError}  # fmt: skip


@pytest.mark.parametrize("cause", EVERY_CLASS, ids=lambda found: found.__name__)
def test_an_exception_of_this_package_while_a_task_is_at_work(cause: type[AttribBatchError]) -> None:
    if cause in ENDS:
        with pytest.raises(ENDS[cause], match=SAID):
            judge(cause(SAID), WORKER, TASK)
        return
    event = judge(cause(SAID), WORKER, TASK)
    kind = AT_WORK[cause]
    assert event == (WorkerLost(WORKER, SAID) if kind is WorkerLost else kind(WORKER, TASK, SAID))


@pytest.mark.parametrize("cause", EVERY_CLASS, ids=lambda found: found.__name__)
def test_an_exception_of_this_package_while_a_worker_loads(cause: type[AttribBatchError]) -> None:
    if cause in ENDS_A_START:
        with pytest.raises(ENDS_A_START[cause], match=SAID):
            judge(cause(SAID), WORKER, None)
        return
    assert judge(cause(SAID), WORKER, None) == LOADING[cause](WORKER, SAID)


@pytest.mark.parametrize("cause", [KeyError("x"), MemoryError("no room"), OSError("torn"), SystemExit(3)])
def test_any_other_exception_costs_the_worker_alone_and_is_named(cause: BaseException) -> None:
    named = f"{type(cause).__name__}: {cause}"
    assert judge(cause, WORKER, TASK) == WorkerLost(WORKER, named)
    assert judge(cause, WORKER, None) == WorkerFailedToStart(WORKER, named)


def test_output_that_refuses_one_worker_does_not_make_the_request_wrong() -> None:
    with pytest.raises(RunInterruptedError) as ended:
        judge(OutputError("no space left"), WORKER, TASK)
    assert ended.value.exit_code == ExitCode.UNFINISHED
    assert isinstance(ended.value.__cause__, OutputError)
