"""What a card can do: by its name, and measured."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench

PEAKS = {
    "H100 PCIe": (756.0, 51.2),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.4, 66.9),
    "H200 NVL": (835.0, 60.0),
    "H200": (989.4, 66.9),
    "A100": (311.9, 19.5),
    "L40S": (362.0, 91.6),
}
"""TFLOP/s of dense matrix products that NVIDIA's data sheets state, by what is in a card's name: in bfloat16, and in
float32 without TF32."""


def name(device: torch.device) -> str:
    """The card's own name; of a CPU, that it is one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def stated_peak(card: str, dtype: torch.dtype) -> float | None:
    """TFLOP/s by the card's name; None where it is not known."""
    found = next((peaks for known, peaks in PEAKS.items() if known in card), None)
    return None if found is None else found[dtype is torch.float32]


def measured_peak(bench: Bench, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """TFLOP/s of one large square matrix product, the best of several."""
    n = bench.sizes.matmul
    a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        bench.synchronize()
        started = time.perf_counter()
        a @ b
        bench.synchronize()
        now = time.perf_counter()
        best = min(best, now - started)
        if now > until:
            return 2 * n**3 / best / 1e12
