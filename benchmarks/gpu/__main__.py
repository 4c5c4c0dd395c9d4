"""Measure everything on one device, part by part, and print it; see the package."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attrib_batch.models.arithmetic import exact_arithmetic
from attrib_batch.models.devices import ALLOCATOR_VARIABLES
from benchmarks import machine
from benchmarks.gpu import agreement, card, committed, memory, throughput, transfers
from benchmarks.gpu.bench import TINY, Bench, Clock, Sizes
from benchmarks.page import replace_part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOTAL_SECONDS = 345.0
"""Of all parts together; imports and what a part may run over are left."""


@dataclass(frozen=True)
class Part:
    """One thing that is measured."""

    name: str
    title: str
    seconds: float
    """What it may take; it stops by itself, and says what it left out."""
    measure: Callable[[Bench, Clock], str]
    forgets: bool = False
    """Whether models are given back after it, for what follows needs their memory."""


PARTS = (
    Part("small", "Pairs a second and utilisation, small model", 50, throughput.small),
    Part("large", "Pairs a second and utilisation, large model", 55, throughput.large),
    Part("transfers", "Waits and transfers", 20, transfers.measure),
    Part("peaks-large", "Peak memory against the budget, large model", 15, memory.peaks_large, forgets=True),
    Part("peaks-small", "Peak memory against the budget, small model", 10, memory.peaks_small),
    Part("committed", "Time outside the model", 30, committed.measure),
    Part("oracle", "Tests against plain hooks", 75, agreement.oracle_tests),
    Part("agreement", "Differences between batch sizes", 20, agreement.between_batch_sizes),
    Part("growth", "Memory after each chunk", 70, memory.growth),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few pairs: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--skip", nargs="+", default=(), choices=[part.name for part in PARTS], help="all but these")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="what all parts may take together")
    parser.add_argument("--out", type=Path, help="replace a part of this page, such as benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device here; try --device cpu --tiny")
    wanted = set(options.only or [part.name for part in PARTS]) - set(options.skip)
    chosen = [part for part in PARTS if part.name in wanted]
    bench = Bench(device, TINY if options.tiny else Sizes(), small_model=options.tiny)
    text, failed = run(bench, chosen, options.seconds)
    if options.out is not None:
        replace_part(options.out, "gpu", text)
    return int(failed)


def run(bench: Bench, parts: Sequence[Part], seconds: float) -> tuple[str, bool]:
    """Measure parts in order, and print each as soon as it is known; return all of it, and whether one failed.

    A part that fails, or for which too little time is left, costs no other.
    """
    text = _say(f"## (m) On a GPU\n\nWritten by `python -m benchmarks.gpu`. {describe(bench.device)}")
    total, failed = Clock(seconds), False
    for part in parts:
        text += _say(f"### {part.title}")
        if total.left < part.seconds:
            text += _say(f"Left out: it may take {part.seconds:.0f} s, and {max(0.0, total.left):.0f} s are left.")
            continue
        started = time.perf_counter()
        try:
            with exact_arithmetic():
                text += _say(part.measure(bench, Clock(part.seconds)))
        except Exception:  # noqa: BLE001 - an expensive machine is at hand: whatever fails, the others are measured
            failed = True
            text += _say(f"Failed:\n\n```\n{traceback.format_exc()[-3000:]}```")
        if part.forgets:
            bench.forget()
        print(f"{part.name}: {time.perf_counter() - started:.1f} of {part.seconds:.0f} s", file=sys.stderr, flush=True)
    return text, failed


def describe(device: torch.device) -> str:
    """The machine, the card and the settings that figures depend on."""
    import os

    settings = [f"{name}={os.environ[name]}" for name in ALLOCATOR_VARIABLES if name in os.environ]
    words = [machine.describe(), f"Device: {card.name(device)}"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        words[-1] += f", {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return ". ".join([", ".join([words[0].rstrip("."), words[1]]), f"{', '.join(settings) or 'Allocator as it is'}."])


def _say(block: str) -> str:
    print(block.strip() + "\n", flush=True)
    return block.strip() + "\n\n"


if __name__ == "__main__":
    sys.exit(main())
