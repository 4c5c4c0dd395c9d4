"""What exceptions of devices say, by the texts that CUDA, cuBLAS, NCCL and the allocators have for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed import DistBackendError

from attrib_batch.attribution.engine import FailedPair, ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.faults import is_device_lost, is_out_of_memory, says_out_of_memory
from attrib_batch.errors import DeviceLostError, ModelError, TaskError
from tests.support.demo_pairs import random_pairs
from tests.support.scored import encoded, method, tiny_model

HINTS = (
    "\nSearch for `{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to "
    "enable device-side assertions.\n"
)
"""What torch adds to every error of CUDA. The last line speaks of device-side assertions whatever happened."""
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3699, unhandled cuda error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.27.3\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\n{last}"
)


def cuda(text: str, name: str) -> Exception:
    return torch.AcceleratorError(f"CUDA error: {text}{HINTS.format(name=name)}")


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    cuda("out of memory", "cudaErrorMemoryAllocation"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 2.1 GB, max allowed: 18.1 GB)"),
    DistBackendError(NCCL.format(last="Cuda failure 2 'out of memory'")),
    DistBackendError(NCCL.format(last="Failed to CUDA calloc 6291456 bytes")),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
]
LOST = [
    cuda("an illegal memory access was encountered", "cudaErrorIllegalAddress"),
    cuda("device-side assert triggered", "cudaErrorAssert"),
    cuda("unspecified launch failure", "cudaErrorLaunchFailure"),
    cuda("misaligned address", "cudaErrorMisalignedAddress"),
    cuda("an illegal instruction was encountered", "cudaErrorIllegalInstruction"),
    cuda("uncorrectable ECC error encountered", "cudaErrorECCUncorrectable"),
    cuda("the launch timed out and was terminated", "cudaErrorLaunchTimeout"),
    cuda("unknown error", "cudaErrorUnknown"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSetStream(handle, stream)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    DistBackendError(NCCL.format(last="Cuda failure 700 'an illegal memory access was encountered'")),
]
NEITHER = [
    cuda("invalid configuration argument", "cudaErrorInvalidConfiguration"),
    cuda("invalid argument", "cudaErrorInvalidValue"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("unknown error in a metric"),
    ValueError("CUDA error: an illegal memory access was encountered"),
    KeyError("misaligned address"),
]


def named(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__} {lines[-1] if 'NCCL' in str(error) else lines[:1]}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=named)
def test_memory_that_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error), "the device goes on; smaller batches may fit"
    # Failures keep an exception's class and text alone.
    assert says_out_of_memory(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("error", LOST, ids=named)
def test_a_device_that_is_lost(error: Exception) -> None:
    assert is_device_lost(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", NEITHER, ids=named)
def test_what_is_neither(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert not is_device_lost(error)


def test_the_allocator_of_this_machine_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


def raising(error: Exception) -> Any:
    """A model whose last layer raises, in the middle of a trace, as a kernel's failure does."""
    model = tiny_model("llama")

    def fail(*_: object) -> None:
        raise error

    model.module.model.layers[-1].mlp.register_forward_hook(fail)
    return model


@pytest.mark.parametrize("error", LOST[:2] + LOST[8:9], ids=named)
def test_a_lost_device_is_no_pairs_fault(error: Exception) -> None:
    """No device can be broken on demand: the error comes out of a layer, through nnsight, as one would."""
    with pytest.raises(DeviceLostError, match=r"the device is lost to this process \(.*Error: CUDA error: ") as caught:
        list(score_pairs(raising(error), encoded(random_pairs(3, 9, 4)), [method()], TokenBudget(4096)))
    assert isinstance(caught.value, TaskError), "which the driver takes for a task's failure, not for a pair's"
    assert "\n" not in str(caught.value)


def test_a_kernel_that_is_not_deterministic_is_the_requests_fault() -> None:
    error = RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation."
    )
    with pytest.raises(ModelError, match=r"deterministic: true cannot be kept: cumsum_cuda_kernel does not have"):
        list(score_pairs(raising(error), encoded(random_pairs(3, 9, 4)), [method()], TokenBudget(4096)))


def test_a_launch_that_is_too_large_is_tried_smaller() -> None:
    """A batch that a kernel cannot be launched with is halved: the device is as well as before."""
    model = tiny_model("llama")

    def fail_if_large(_module: object, args: tuple[torch.Tensor], _output: object) -> None:
        if args[0].shape[0] > 2:
            raise cuda("invalid configuration argument", "cudaErrorInvalidConfiguration")

    model.module.model.layers[-1].mlp.register_forward_hook(fail_if_large)
    outcomes = [found for _, found in score_pairs(model, encoded(random_pairs(4, 9, 4)), [method()], TokenBudget(4096))]
    assert not any(isinstance(outcome, FailedPair) for outcome in outcomes)
    assert sum(len(outcome.pairs) for outcome in outcomes if isinstance(outcome, ScoredBatch)) == 4
