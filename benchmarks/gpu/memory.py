"""Peak memory against the budget, and memory that chunks leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu import engine
from benchmarks.gpu.models import make_pairs
from benchmarks.page import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attrib_batch.models.load import LoadedModel
    from benchmarks.gpu.bench import Bench, Clock

SETTLED = 0.25
"""The first share of the chunks, in which caches fill, is left out of slopes."""


def peaks_small(bench: Bench, clock: Clock) -> str:
    """Of GPT-2 small."""
    sizes = bench.sizes
    of = _Of("GPT-2 small, float32", sizes.prompts[-1], sizes.budgets, sizes.pairs)
    return _peaks(bench, clock, bench.gpt2, of)


def peaks_large(bench: Bench, clock: Clock) -> str:
    """Of Llama 3.1 8B."""
    sizes = bench.sizes
    of = _Of("Llama 3.1 8B, bfloat16", sizes.long_prompts[-1], sizes.large_budgets, sizes.large_pairs)
    return _peaks(bench, clock, bench.llama, of)


@dataclass(frozen=True)
class _Of:
    """Of what peaks are measured."""

    name: str
    shape: tuple[int, int]
    """Length and first difference: one alone, so that micro-batches are full however the engine forms them."""
    budgets: tuple[int, ...]
    most_pairs: int


def _peaks(bench: Bench, clock: Clock, model: LoadedModel, of: _Of) -> str:
    rows = []
    total = torch.cuda.get_device_properties(bench.device).total_memory if bench.on_gpu else None
    length, first = of.shape
    for tokens in of.budgets:
        pairs = make_pairs(model, max(1, min(of.most_pairs, tokens // (length - first))), (of.shape,))
        if clock.left <= 0:
            rows.append([f"{tokens:,}", "no time left", "", ""])
            continue
        try:
            peak = bench.peak_during(lambda pairs=pairs, tokens=tokens: list(engine.score(model, pairs, tokens)))
        except RuntimeError as error:
            rows.append([f"{tokens:,}", " ".join(str(error).split())[:120], "", ""])
            continue
        share = f"{peak / total:.0%}" if total else ""
        rows.append([f"{tokens:,}", f"{peak / 2**20:,.0f}", f"{peak / tokens / 2**10:,.1f}", share])
    head = ["suffix tokens a micro-batch may have", "peak above the model, MiB", "KiB a token", "of the card"]
    return f"{of.name}, pairs of {length} tokens that first differ at {first}.\n\n{table(head, rows)}"


def growth(bench: Bench, clock: Clock) -> str:
    """What is allocated after each chunk of every method, on GPT-2 small."""
    model, sizes = bench.gpt2, bench.sizes
    # Each chunk has one shape, and the next another: memory for one fits none of the others.
    chunks = [make_pairs(model, sizes.chunk_pairs, (shape,)) for shape in sizes.prompts]
    rows = []
    for number, method in enumerate(engine.METHODS):
        reserved = clock.seconds * (len(engine.METHODS) - 1 - number) / len(engine.METHODS)
        seen: list[int] = []
        while len(seen) < sizes.chunks and clock.left > reserved:
            for _ in engine.score(model, chunks[len(seen) % len(chunks)], sizes.budgets[0], method):
                pass
            bench.synchronize()
            seen.append(bench.allocated())
        rows.append([method.id, f"{len(seen)}", *_growth(seen)])
    head = [
        "method",
        f"chunks of {sizes.chunk_pairs} pairs",
        "after the first, MiB",
        "after the last, MiB",
        "KiB a chunk",
    ]
    return "What is allocated after each chunk, and the slope over all but the first quarter.\n\n" + table(head, rows)


def _growth(seen: Sequence[int]) -> list[str]:
    if not seen:
        return ["no time left", "", ""]
    return [f"{seen[0] / 2**20:,.1f}", f"{seen[-1] / 2**20:,.1f}", f"{slope(seen) / 2**10:+.2f}"]


def slope(values: Sequence[float]) -> float:
    """How much values grow from one to the next, by least squares, once they have settled; 0 of fewer than two."""
    settled = np.asarray(values[int(len(values) * SETTLED) :], dtype=np.float64)
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0
