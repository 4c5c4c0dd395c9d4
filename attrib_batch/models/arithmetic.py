"""How numbers are computed: the precision of matrix products, deterministic kernels, and what of it is recorded."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

MATMUL_PRECISION = "highest"
"""Of float32 matrix products: in float32 throughout. TF32 has 10 bits of mantissa, and would change scores in the
fourth digit."""


@contextmanager
def exact_arithmetic(*, deterministic: bool = False) -> Iterator[None]:
    """Compute matrix products at full precision, whatever the process had set; that is restored.

    Products in bfloat16 and float16 are added up in float32.

    Args:
        deterministic: have torch use kernels that give the same bits each time, and raise where it has none.
    """
    import torch

    matmul = torch.backends.cuda.matmul
    restore_float32 = _float32_restorer()
    halves = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction
    determinism = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_float32_matmul_precision(MATMUL_PRECISION)
        matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
        if deterministic:
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        restore_float32()
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = halves
        torch.use_deterministic_algorithms(determinism[0], warn_only=determinism[1])


def describe_arithmetic(device: torch.device, *, deterministic: bool) -> dict[str, Any]:
    """Return what scores depend on in their last digits, beside the versions of packages, as a run records it."""
    import torch

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "float32_matmul_precision": MATMUL_PRECISION,
        "deterministic": deterministic,
    }


def _float32_restorer() -> Callable[[], None]:
    """Return what sets the precision of float32 products as it is now.

    torch has two interfaces to it, and one of them cannot be read where a program used the other.
    """
    import torch

    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        by_backend = torch.backends.cuda.matmul.fp32_precision

        def restore() -> None:
            torch.backends.cuda.matmul.fp32_precision = by_backend

        return restore
    return lambda: torch.set_float32_matmul_precision(before)
