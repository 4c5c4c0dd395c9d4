"""How often a micro-batch makes the host wait for the device, what is copied, and what kernels it takes."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import engine
from benchmarks.gpu.models import make_pairs
from benchmarks.page import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.gpu.bench import Bench, Clock

SHOWN = 10
"""Most places and kernels that are listed."""
PACKAGE = str(Path(__file__).parents[2] / "attrib_batch")
COPIES = {"Memcpy HtoD": "copies to the device", "Memcpy DtoH": "copies to the host"}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")


@dataclass
class Counts:
    """What one profiled run did."""

    calls: Counter[str] = field(default_factory=Counter)
    """Waits, copies and launches, by what the table calls them."""
    kernel_microseconds: Counter[str] = field(default_factory=Counter)
    span_microseconds: float = 0.0

    @classmethod
    def of(cls, events: Iterable[Any]) -> Counts:
        """Count what the profiler saw: events with ``name``, ``device_type`` and ``time_range``."""
        found = cls()
        first, last = float("inf"), 0.0
        for event in events:
            start, end = event.time_range.start, event.time_range.end
            first, last = min(first, start), max(last, end)
            copied = next((what for name, what in COPIES.items() if event.name.startswith(name)), None)
            if copied is not None:
                found.calls[copied] += 1
            elif event.name in WAITS:
                found.calls["waits of the host"] += 1
            elif event.name in LAUNCHES:
                found.calls["kernels launched"] += 1
            elif "CUDA" in str(event.device_type) and not event.name.startswith(("Memset", "Memcpy")):
                found.kernel_microseconds[event.name] += end - start
        found.span_microseconds = max(0.0, last - first)
        return found

    @property
    def busy(self) -> float | None:
        """The share of the time in which a kernel ran; None where none did."""
        spent = sum(self.kernel_microseconds.values())
        return spent / self.span_microseconds if spent and self.span_microseconds else None


def measure(bench: Bench, clock: Clock) -> str:
    """Profile a few micro-batches of GPT-2 small, and of Llama where it is on the device."""
    text = "Counted over whole micro-batches, after one to warm up; a prefix's pass is part of its micro-batch.\n\n"
    for name, model in (("GPT-2 small", bench.gpt2), ("Llama 3.1 8B", bench.llama)):
        if clock.left <= 0:
            return text + f"#### {name}\n\nNo time left.\n\n"
        tokens = (bench.sizes.budgets if name.startswith("GPT") else bench.sizes.large_budgets)[0]
        pairs = make_pairs(model, bench.sizes.hook_batches[0], bench.sizes.prompts, seed=2)

        def run(model: Any = model, pairs: Any = pairs, tokens: int = tokens) -> int:
            return engine.n_micro_batches(model, pairs, tokens)

        n_batches = run()
        sites = _sites(bench, run)
        try:
            counts = _profiled(bench, run)
        except RuntimeError as error:  # not every container lets a process profile the card
            text += f"The profiler does not work here: {' '.join(str(error).split())[:200]}\n\n"
            counts = Counts()
        text += f"#### {name}\n\n{render(counts, n_batches, sites)}\n\n"
    return text


def render(counts: Counts, n_batches: int, sites: Counter[str]) -> str:
    """What was counted, for a micro-batch, with the places and kernels that make most of it."""
    names = ("waits of the host", *COPIES.values(), "kernels launched")
    rows = [[name, f"{counts.calls[name] / n_batches:.1f}"] for name in names]
    rows.append(["operations that wait, by torch's own warning", f"{sites.total() / n_batches:.1f}"])
    rows.append(["share of the time with a kernel at work", "" if counts.busy is None else f"{counts.busy:.1%}"])
    parts = [table([f"over {n_batches} micro-batches", "a micro-batch"], rows)]
    if sites:
        lines = [[f"`{place}`", f"{count / n_batches:.1f}"] for place, count in sites.most_common(SHOWN)]
        parts.append(table(["where the host waits", "times a micro-batch"], lines))
    if counts.kernel_microseconds:
        total = sum(counts.kernel_microseconds.values())
        lines = [
            [f"`{name[:90]}`", f"{spent / total:.1%}"] for name, spent in counts.kernel_microseconds.most_common(SHOWN)
        ]
        parts.append(table(["kernel", "of the kernels' time"], lines))
    return "\n\n".join(parts)


def _profiled(bench: Bench, run: Callable[[], object]) -> Counts:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
        bench.synchronize()
    return Counts.of(profiler.events() or ())


def _sites(bench: Bench, run: Callable[[], object]) -> Counter[str]:
    """Count the operations that torch says wait for the device, by the place in the package that called them."""
    places: Counter[str] = Counter()
    if not bench.on_gpu:
        return places
    with told_of_waits(places):
        run()
    return places


@contextmanager
def told_of_waits(places: Counter[str]) -> Iterator[None]:
    """Count, by the place that calls it, every operation for which the host waits for the device."""

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            places[place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def place() -> str:
    """The innermost line of the package that is being executed; the innermost of all where there is none."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename not in {__file__, warnings.__file__}]
    mine = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    frame = (mine or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
