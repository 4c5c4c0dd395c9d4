"""``python -m benchmarks.families``: how each family's prompts are passed, and what mixing their shapes brings.

Tiny models with random weights, of every family: what a pass costs whatever it computes is nearly all there is, as on a
GPU. Writes its part of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attrib_batch.attribution.engine import TokenBudget
from attrib_batch.attribution.passes import passes_for
from attrib_batch.attribution.passes.fitness import why_not_packed
from attrib_batch.spec import Component
from benchmarks import machine
from benchmarks.models import N_THREADS
from benchmarks.page import RESULTS, replace_part, table
from benchmarks.rounds import alternate
from benchmarks.shapes import check_same, engine_scores, one_shape_at_a_time
from tests.support.demo_pairs import random_pairs
from tests.support.scored import encoded, tiny_model
from tests.support.tiny_models import EVERY_ARCHITECTURE

if TYPE_CHECKING:
    from attrib_batch.pairs.encoding.encode import EncodedPair

LENGTHS = range(8, 24)
BUDGET = TokenBudget(8192)


def mixed(per_shape: int) -> list[EncodedPair]:
    """Pairs of 16 lengths that first differ in the middle."""
    return encoded([pair for n in LENGTHS for pair in random_pairs(per_shape, n, n // 2, seed=n)])


def measure(name: str, per_shape: int, n_rounds: int) -> list[str]:
    """One family's row."""
    model, pairs = tiny_model(name), mixed(per_shape)
    way = "padded: " + (why_not_packed(model) or "") if passes_for(model).padded else "packed"
    components = " ".join(f"`{component}`" for component in model.architecture.sites)
    times = "has no `z`"
    if Component.Z in model.architecture.sites:
        ours, before = partial(engine_scores, model, pairs, BUDGET), partial(one_shape_at_a_time, model, pairs)
        check_same(ours(), before())
        ratio = alternate({"ours": ours, "before": before}, n_rounds).ratio("before", "ours")
        times = f"**{ratio.median:.1f}** ({ratio.low:.1f} to {ratio.high:.1f})"
    return [name, model.model_type, way, times, components]


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="pairs of each of 16 shapes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    torch.set_num_threads(N_THREADS)
    rows = [measure(name, options.pairs, options.rounds) for name in EVERY_ARCHITECTURE]
    text = (
        f"## (p) Families\n\nWritten by `python -m benchmarks.families`. {machine.describe()}\n\n"
        f"Tiny models with random weights, {options.pairs * len(LENGTHS)} pairs of {len(LENGTHS)} shapes, `z` by "
        "`atp`: how many times as fast as one shape at a time, once both gave the same scores. What is computed is "
        "equal to plain hooks for every component (`tests/attribution`).\n\n"
        + table(["model of the tests", "model type", "suffixes are", "times as fast", "components"], rows)
    )
    replace_part(options.out, "families", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
