"""What an exception of a computation says: memory ran out, the device is lost, or the request cannot be kept.

CUDA, cuBLAS, cuDNN, NCCL and the CPU's allocator say so in their own words. Most of it has no exception class of its
own, so the words are read, here and nowhere else. Importing this module does not import torch.
"""

from __future__ import annotations

import re

from attrib_batch.errors import DeviceLostError, ModelError

_OUT_OF_MEMORY = re.compile(
    r"""
      \bout[ ]of[ ]memory\b               # CUDA, its driver, HIP, MPS, and NCCL: Cuda failure 2 'out of memory'
    | \bMemoryError\b                     # of Python and NumPy, where an exception has become text
    | DefaultCPUAllocator                 # the CPU's allocator
    | Failed[ ]to[ ]CUDA[ ]\w+[ ]\d+[ ]bytes
    | CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED
    | CUBLAS_STATUS_NOT_INITIALIZED[ ]when[ ]calling[ ]`cublasCreate
    """,
    re.VERBOSE,
)
"""The last one is what cuBLAS says where there is no memory left for a handle."""

_DEVICE = re.compile(r"\b(CUDA|HIP)( driver)? error\b|\bCuda failure\b|cuDNN error|Triton Error|_STATUS_")
"""What speaks for a device, without which the words below may be anybody's."""

_DEVICE_LOST = re.compile(
    r"""
      illegal[ ]memory[ ]access | illegal[ ]instruction | misaligned[ ]address | invalid[ ]program[ ]counter
    | device-side[ ]assert\b | hardware[ ]stack[ ]error
    | operation[ ]not[ ]supported[ ]on[ ]global/shared[ ]address[ ]space
    | unspecified[ ]launch[ ]failure | launch[ ]timed[ ]out | context[ ]is[ ]destroyed | driver[ ]shutting[ ]down
    | uncorrectable[ ](ECC|NVLink)[ ]error | GPU[ ]has[ ]fallen[ ]off | GPU[ ]is[ ]lost
    | no[ ]CUDA-capable[ ]device | devices?[ ]are[ ]busy[ ]or[ ]unavailable | unknown[ ]error
    | CU(BLAS|DNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Errors after which a process can do nothing more on its device. Others (a configuration that a kernel cannot be
launched with) leave it usable, and a smaller micro-batch may not meet them. Every error of CUDA ends with a hint that
speaks of device-side assertions."""

_NOT_DETERMINISTIC = re.compile(r"does not have a deterministic implementation|Deterministic behavior was enabled")


def says_out_of_memory(message: str) -> bool:
    """Return whether the text of an exception says that memory ran out, on a GPU or on the CPU."""
    return _OUT_OF_MEMORY.search(message) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError) or _is_torch(error, "OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def is_device_lost(error: BaseException) -> bool:
    """Return whether a process can do nothing more on its device after an exception, whatever it computes there.

    The kernel that did it may have run long before the call that raises.
    """
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    message = str(error)
    spoken_for = _is_torch(error, "AcceleratorError") or _DEVICE.search(message) is not None
    return spoken_for and _DEVICE_LOST.search(message) is not None


def raise_if_no_pair_is_to_blame(error: Exception) -> None:
    """Raise what ends the scoring, where an exception says so; return where a pair may be its cause.

    Raises:
        DeviceLostError: the device is lost to this process.
        ModelError: the job asks for deterministic kernels, and the model needs one that there is not.
    """
    if is_device_lost(error):
        raise DeviceLostError(
            f"the device is lost to this process ({type(error).__name__}: {_first_line(error)}). Whatever was at work "
            "is computed again elsewhere. If it comes again, look at the device (nvidia-smi, dmesg), or set "
            "CUDA_LAUNCH_BLOCKING=1 to see which call it is"
        ) from error
    if isinstance(error, RuntimeError) and _NOT_DETERMINISTIC.search(str(error)):
        raise ModelError(
            f"deterministic: true cannot be kept: {_first_line(error)} Set attention: eager, or deterministic: false"
        ) from error


def _is_torch(error: BaseException, name: str) -> bool:
    """Return whether an exception is of a class of torch."""
    import torch

    return isinstance(error, getattr(torch, name))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
