"""Pairs a second beside other ways to the same scores, and the share of the card's peak that the engine uses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu import card, engine, hooks, lens
from benchmarks.gpu.bench import Clock
from benchmarks.gpu.flops import ModelFlops
from benchmarks.gpu.models import GPT2, make_pairs
from benchmarks.page import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.pairs.encoding.encode import EncodedPair
    from benchmarks.gpu.bench import Bench

NO_TIME = "no time left"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between the engine and the hooks, of the largest score, that is rounding."""
ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """What one way to the scores took."""

    how: str
    n_pairs: int
    seconds: float | None
    problem: str = ""

    @property
    def pairs_per_second(self) -> float | None:
        """None where there was no time, or it did not work."""
        return self.n_pairs / self.seconds if self.seconds else None


def timed(
    how: str, n_pairs: int, run: Callable[[], Any], bench: Bench, clock: Clock, *, rounds: int | None = None
) -> Speed:
    """Time one way; what it raises is a line of the table, and no end of the others."""
    if clock.left <= 0:
        return Speed(how, n_pairs, None, NO_TIME)
    try:
        seconds = bench.seconds(run, clock, rounds=min(rounds or bench.sizes.rounds, bench.sizes.rounds))
    except Exception as error:  # noqa: BLE001 - memory may run out, or another package may not know the card
        return Speed(how, n_pairs, None, " ".join(f"{type(error).__name__}: {error}".split())[:160])
    return Speed(how, n_pairs, seconds, "" if seconds else NO_TIME)


def small(bench: Bench, clock: Clock) -> str:
    """GPT-2 small: the engine, hooks, TransformerLens in float32, then the first two in bfloat16."""
    sizes = bench.sizes
    single = _of_small(bench, bench.gpt2, clock, sizes.budgets, sizes.hook_batches, beside_lens=True)
    ends = sizes.hook_batches[0], sizes.hook_batches[-1]
    narrow = _of_small(bench, bench.model(GPT2.of(torch.bfloat16)), clock, sizes.budgets[-1:], ends, beside_lens=False)
    return f"#### GPT-2 small, float32\n\n{single}\n\n#### GPT-2 small, bfloat16\n\n{narrow}"


def _of_small(
    bench: Bench,
    model: LoadedModel,
    clock: Clock,
    budgets: Sequence[int],
    hook_batches: Sequence[int],
    *,
    beside_lens: bool,
) -> str:
    sizes = bench.sizes
    pairs = make_pairs(model, sizes.pairs, sizes.prompts)
    few = pairs[: max(hook_batches)]
    difference = _check(model, few[: hook_batches[0]], budgets[0])
    speeds = [
        timed(f"engine, {tokens:,} suffix tokens", len(pairs), partial(_drain, model, pairs, tokens), bench, clock,
              rounds=ROUNDS)
        for tokens in budgets
    ]  # fmt: skip
    speeds += [
        timed(f"hooks, batches of {size}", len(few), partial(hooks.scores_of, model, few, size), bench, clock,
              rounds=ROUNDS)
        for size in hook_batches
    ]  # fmt: skip
    if beside_lens:
        speeds.append(lens.speed(bench, model, few[: hook_batches[0]], clock))
    head = (
        f"{len(pairs):,} pairs of {sizes.prompts[0][0]} to {sizes.prompts[-1][0]} tokens in {len(sizes.prompts)} "
        f"shapes, prefixes all different. Engine and hooks agree within {difference:.1e} of the largest score. Hooks: "
        "sorted by length, padded on the right, parameters frozen, two forward passes and a backward pass, only last "
        "positions unembedded.\n\n"
    )
    return head + _speeds(bench, model, pairs, speeds, f"hooks, batches of {hook_batches[0]}")


def large(bench: Bench, clock: Clock) -> str:
    """Llama 3.1 8B in bfloat16: the engine and hooks, on short and on long prompts."""
    model, sizes = bench.llama, bench.sizes
    text = "#### Llama 3.1 8B, bfloat16\n\n"
    kinds = (
        ("short", sizes.prompts, sizes.large_pairs, 0.4),
        ("long", sizes.long_prompts, sizes.large_long_pairs, 1.0),
    )
    for name, shapes, n_pairs, share in kinds:
        pairs = make_pairs(model, n_pairs, shapes)
        few = pairs[: sizes.hook_batches[0]]
        part = Clock(clock.left * share)
        how = f"hooks, batches of {len(few)}"
        speeds = [timed(how, len(few), partial(hooks.scores_of, model, few, len(few)), bench, part, rounds=2)]
        for tokens in sizes.large_budgets:
            run = partial(_drain, model, pairs, tokens)
            speeds.append(timed(f"engine, {tokens:,} suffix tokens", len(pairs), run, bench, part, rounds=2))
        lengths = f"{shapes[0][0]} to {shapes[-1][0]}"
        text += f"{len(pairs):,} {name} pairs of {lengths} tokens.\n\n{_speeds(bench, model, pairs, speeds, how)}\n\n"
    return text


def _drain(model: LoadedModel, pairs: Sequence[EncodedPair], tokens: int) -> None:
    for _ in engine.score(model, pairs, tokens):
        pass


def _check(model: LoadedModel, pairs: Sequence[EncodedPair], tokens: int) -> float:
    """Compare the engine with the hooks; return the largest difference, relative to the largest score.

    Raises:
        ValueError: they differ by more than rounding.
    """
    found = largest_difference(engine.scores_of(model, pairs, tokens), hooks.scores_of(model, pairs, len(pairs)))
    if not found <= TOLERANCE[model.module.dtype]:
        raise ValueError(f"engine and hooks differ by {found:.2g} of the largest score")
    return found


def largest_difference(ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray]) -> float:
    """The largest difference between two sets of scores, relative to the largest score."""
    largest = max(float(np.abs(scores).max()) for scores in theirs.values())
    return max(float(np.abs(ours[index] - scores).max()) for index, scores in theirs.items()) / largest


def _speeds(
    bench: Bench, model: LoadedModel, pairs: Sequence[EncodedPair], speeds: Sequence[Speed], beside: str
) -> str:
    dtype = model.module.dtype
    flops = ModelFlops.of(model.module.config).total(pairs) / len(pairs)
    stated = card.stated_peak(card.name(bench.device), dtype)
    measured = card.measured_peak(bench, dtype)
    base = next((speed.pairs_per_second for speed in speeds if speed.how == beside), None)
    rows = []
    for speed in speeds:
        rate = speed.pairs_per_second
        if rate is None:
            rows.append([speed.how, speed.problem, "", "", "", ""])
            continue
        done = rate * flops / 1e12
        rows.append(
            [
                speed.how,
                f"{rate:,.0f}",
                f"{rate / base:.2f}" if base else "",
                f"{done:.3g}",
                f"{done / stated:.1%}" if stated else "not known",
                f"{done / measured:.1%}",
            ]
        )
    peak = f"{stated:g} TFLOP/s by its name, " if stated else ""
    precision = str(dtype).removeprefix("torch.")
    return (
        table(["how", "pairs/s", f"beside {beside}", "TFLOP/s needed", "of the stated peak", "of the measured"], rows)
        + f"\n\nA pair needs {flops / 1e9:.3g} GFLOP (`benchmarks/gpu/flops.py`), whoever computes it, so the last "
        f"columns are model FLOP utilisation. The card: {peak}{measured:.1f} TFLOP/s measured on a square product, in "
        f"{precision}."
    )
