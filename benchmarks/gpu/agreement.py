"""How far scores of the same pairs differ between batch sizes and precisions, and from plain hooks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attrib_batch.models.load import wrap_model
from benchmarks.gpu import engine
from benchmarks.gpu.models import make_pairs
from benchmarks.gpu.throughput import largest_difference
from benchmarks.page import table

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench, Clock

TESTS = (
    "tests/attribution/test_against_oracle.py",
    "tests/attribution/methods",
    "tests/attribution/test_metrics.py",
    "tests/attribution/passes/test_cascade.py",
)
DEVICE_VARIABLE = "ATTRIB_BATCH_TEST_DEVICE"


def between_batch_sizes(bench: Bench, clock: Clock) -> str:
    """One pair at a time beside the whole set together, in every precision, with the same weights."""
    single = bench.gpt2
    pairs = make_pairs(single, bench.sizes.agreeing_pairs, bench.sizes.prompts)
    reference = engine.scores_of(single, pairs, bench.sizes.budgets[-1])
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        if clock.left <= 0:
            rows.append([name, "no time left", "", ""])
            continue
        model = wrap_model(copy.deepcopy(single.module).to(dtype), single.tokenizer)
        together = engine.scores_of(model, pairs, bench.sizes.budgets[-1])
        few = pairs[: max(1, len(pairs) // 4)]
        alone = engine.scores_of(model, few, 1)
        some = engine.scores_of(model, pairs, max(1, bench.sizes.budgets[0] // 16))
        rows.append(
            [
                name,
                f"{largest_difference({pair.pair_id: together[pair.pair_id] for pair in few}, alone):.1e}",
                f"{largest_difference(some, together):.1e}",
                f"{largest_difference(together, reference):.1e}",
            ]
        )
    head = ["precision", "one at a time, beside all together", "smaller batches, beside all", "beside float32"]
    return (
        f"The largest difference of any `z` score of {len(pairs)} pairs, relative to the largest score (GPT-2 small, "
        f"random weights).\n\n{table(head, rows)}"
    )


def oracle_tests(bench: Bench, clock: Clock) -> str:
    """Run the tests that compare with plain hooks, with their models on the device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow", *TESTS]
    try:
        done = subprocess.run(
            command, check=False, env=os.environ | {DEVICE_VARIABLE: str(bench.device)}, capture_output=True,
            text=True, timeout=clock.left, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return f"Not done within {clock.seconds:.0f} s; so far:\n\n```\n{said.strip()}\n```"
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    used = [line for line in lines if line.startswith("rounding: ")]
    said = [f"`{' '.join(command[2:])}` on {bench.device}: {lines[-1]}", *used, *failed[:20]]
    return "\n\n".join(said)
