"""The engine beside other ways to the same scores: first that the scores are the same, then how long each takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import lens, recipes, workloads
from benchmarks.models import load
from benchmarks.rounds import Timings, alternate
from benchmarks.without_nnsight import engine_without_nnsight

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workloads import Workload


ENGINE = "engine"
WITHOUT_NNSIGHT = "engine without nnsight"
HOOKS = "hooks"
HOOKS_CONTIGUOUS = "hooks, contiguous head"
TUTORIAL = "tutorial"
LENS = "TransformerLens"
FORWARD = "forward"
FORWARD_CONTIGUOUS = "forward, contiguous head"

PART_TOKENS = 2048
"""Most tokens of clean prompts that a variant with gradients on parameters takes at once: beyond, memory runs out."""

TOLERANCE = 1e-4
"""Largest difference between two ways to the same scores, relative to the largest score."""


@dataclass(frozen=True)
class Comparison:
    """All variants on one workload."""

    name: str
    n_pairs: int
    timings: Timings

    @property
    def variants(self) -> list[str]:
        """What was measured."""
        return list(self.timings.seconds)


def measure(model_id: str, *, n_pairs: int, n_rounds: int) -> list[Comparison]:
    """Compare on every workload; the long prompts get half the rounds."""
    model, unfrozen = load(model_id), load(model_id, frozen=False)
    lens_model = lens.load(model_id)
    makers = {
        "plain pairs": (workloads.plain, n_rounds),
        "pairs with their mirrors": (workloads.mirrored, n_rounds),
        "70-token preamble": (workloads.with_preamble, max(3, n_rounds // 2)),
    }
    comparisons = []
    for name, (make, rounds) in makers.items():
        work = make(model, n_pairs)
        scoring: dict[str, Callable[[], Any]] = {
            ENGINE: partial(recipes.engine, model, work),
            WITHOUT_NNSIGHT: partial(engine_without_nnsight, model, work),
            HOOKS: partial(recipes.hooks, model.module, work),
            HOOKS_CONTIGUOUS: partial(recipes.hooks, model.module, work, contiguous_head=True),
            TUTORIAL: partial(_in_parts, partial(recipes.tutorial, unfrozen), work),
        }
        if lens_model is not None:
            scoring[LENS] = partial(_in_parts, partial(lens.scores, lens_model), work)
        print(f"{name}: checking that {', '.join(scoring)} agree", file=sys.stderr)
        _check_same_scores(scoring)
        forwards = {
            FORWARD: partial(recipes.plain_forward, model.module, work),
            FORWARD_CONTIGUOUS: partial(recipes.plain_forward, model.module, work, contiguous_head=True),
        }
        for forward in forwards.values():
            forward()
        print(f"{name}: {rounds} rounds", file=sys.stderr)
        comparisons.append(Comparison(name, n_pairs, alternate(scoring | forwards, rounds)))
    return comparisons


def _in_parts(scores: Callable[[Workload], np.ndarray], work: Workload) -> np.ndarray:
    return np.concatenate([scores(part) for part in work.parts(PART_TOKENS)])


def _check_same_scores(variants: dict[str, Callable[[], np.ndarray]]) -> None:
    """Run every variant once, which warms it up too.

    Raises:
        ValueError: two of them do not give the same scores.
    """
    found = {name: run() for name, run in variants.items()}
    expected = found[HOOKS]
    largest = np.abs(expected).max()
    for name, scores in found.items():
        difference = np.abs(scores - expected).max() / largest if scores.shape == expected.shape else np.inf
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{name} gives other scores than {HOOKS}: shapes {scores.shape} and {expected.shape}, largest "
                f"difference {difference:.2g} of the largest score, allowed {TOLERANCE:.2g}"
            )
