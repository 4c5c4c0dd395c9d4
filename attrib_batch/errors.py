"""What can go wrong, as classes a caller can catch.

Every message says what is wrong, where, and what to do. The command line turns a class into an exit code; nothing
else does.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command of ``attrib-batch`` ends."""

    OK = 0
    """Every pair was scored."""
    UNFINISHED = 1
    """The run could not finish. What is committed stays, and the same command resumes."""
    BAD_REQUEST = 2
    """The request itself is wrong: job file, dataset, model, output, or a resume that does not match."""
    SOME_FAILED = 3
    """The run finished; some pairs are in the failures table."""


class AttribBatchError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = ExitCode.UNFINISHED


class RequestError(AttribBatchError):
    """What was asked for cannot be done as asked; asking again unchanged gives the same answer."""

    exit_code = ExitCode.BAD_REQUEST


class JobError(RequestError):
    """The job file is not valid; the message names the key and what was expected."""


class DatasetError(RequestError):
    """A table of prompt pairs cannot be read as one."""


class ModelError(RequestError):
    """A model cannot be found, is of an unknown architecture, or does not have what the job asks of it."""


class OutputError(RequestError):
    """The output folder cannot be written, or holds something else."""


class StorageError(OutputError):
    """An object store gives no answer, or none that is of use, however often it is asked: not the request's fault."""

    exit_code = ExitCode.UNFINISHED


class ResumeMismatchError(RequestError):
    """The output folder belongs to a different job, dataset or model; the message lists what differs."""


class RunInterruptedError(AttribBatchError):
    """The run stopped before every chunk was committed."""


class StoppedError(RunInterruptedError):
    """The run was stopped by an interrupt; what is committed stays."""


class TaskError(AttribBatchError):
    """Pairs of a task ended in an exception of which none of them is the cause, but a metric, a library or a device."""


class DeviceLostError(TaskError):
    """A process can do nothing more on its device: an illegal access, a failed assertion, broken hardware."""


class ShardGroupError(AttribBatchError):
    """The processes that share one model's weights cannot work together any longer; all of them have to be replaced."""


class ShardsDisagreeError(ShardGroupError):
    """An attempt ended differently in the processes that share one model's weights, or not in all of them."""


class ShardsOutOfMemoryError(ShardsDisagreeError):
    """Memory ran out in some of the processes that share one model's weights while the others were at work."""
