"""What the parts share: the device, the sizes, the models, and the time that each has."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.models import GPT2, LLAMA, LONG_PROMPTS, PROMPTS, Shape, make, tiny

if TYPE_CHECKING:
    from collections.abc import Callable

    from attrib_batch.models.load import LoadedModel


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    prompts: tuple[tuple[int, int], ...] = PROMPTS
    long_prompts: tuple[tuple[int, int], ...] = LONG_PROMPTS
    rounds: int = 5
    """Most rounds of one measurement, where there is time for them."""
    pairs: int = 4096
    """Pairs of a throughput."""
    budgets: tuple[int, ...] = (8_192, 32_768, 65_536)
    """Suffix tokens of a micro-batch of the small model."""
    large_pairs: int = 512
    large_long_pairs: int = 256
    large_budgets: tuple[int, ...] = (4_096, 16_384)
    """The same for the large model."""
    hook_batches: tuple[int, ...] = (64, 256, 1024)
    chunks: int = 200
    chunk_pairs: int = 64
    agreeing_pairs: int = 128
    committed_pairs: int = 16_384
    committed_chunk: int = 1024
    writers: int = 8
    matmul: int = 8192


TINY = Sizes(
    prompts=PROMPTS[:2], long_prompts=LONG_PROMPTS[:1], rounds=1, pairs=12, budgets=(64, 256), large_pairs=6,
    large_long_pairs=4, large_budgets=(64,), hook_batches=(4, 8), chunks=4, chunk_pairs=4, agreeing_pairs=6,
    committed_pairs=12, committed_chunk=6, writers=2, matmul=64,
)  # fmt: skip


@dataclass
class Clock:
    """The time that a part has."""

    seconds: float
    now: Callable[[], float] = time.perf_counter
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.now()

    @property
    def left(self) -> float:
        """Seconds until the part should have ended."""
        return self.seconds - (self.now() - self._started)


@dataclass
class Bench:
    """The device and what is on it."""

    device: torch.device
    sizes: Sizes
    small_model: bool = False
    """Whether shapes are tiny."""
    _models: dict[Shape, LoadedModel] = field(default_factory=dict, init=False)

    @property
    def gpt2(self) -> LoadedModel:
        """GPT-2 small, float32."""
        return self.model(GPT2)

    @property
    def llama(self) -> LoadedModel:
        """Llama 3.1 8B, bfloat16."""
        return self.model(LLAMA)

    def model(self, shape: Shape) -> LoadedModel:
        """A model of a shape, made when it is first asked for."""
        shape = tiny(shape) if self.small_model else shape
        if shape not in self._models:
            self._models[shape] = make(shape, self.device)
        return self._models[shape]

    def forget(self) -> None:
        """Give the memory of all models back."""
        self._models.clear()
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU; otherwise memory is the process's."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Bytes in tensors now; on a CPU, of the whole process."""
        if self.on_gpu:
            return torch.cuda.memory_allocated(self.device)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * 4096

    def peak_during(self, run: Callable[[], Any]) -> int:
        """Most bytes that tensors take at once while something runs, beyond those before; on a CPU, what it left."""
        gc.collect()
        before = self.allocated()
        if not self.on_gpu:
            run()
            return max(0, self.allocated() - before)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def seconds(self, run: Callable[[], Any], clock: Clock, *, rounds: int) -> float | None:
        """The median time of some rounds after one to warm up; None where not even one fits into the time left."""
        spent = self._once(run)
        found: list[float] = []
        while len(found) < rounds and clock.left > min([spent, *found]):
            found.append(self._once(run))
        return statistics.median(found) if found else None

    def _once(self, run: Callable[[], Any]) -> float:
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - started
