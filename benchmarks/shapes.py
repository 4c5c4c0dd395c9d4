"""``python -m benchmarks.shapes``: prompts of mixed shapes, long shared prefixes, and activation patching.

Writes its part of ``benchmarks/RESULTS.md``. Every comparison is of two ways in one process in alternating rounds, once
both have given the same scores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from attrib_batch.attribution import engine
from attrib_batch.attribution.batches import by_shape
from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.memory import MemoryBudget
from attrib_batch.attribution.passes.padded import PaddedPasses
from attrib_batch.execution.workers.task import peak_memory
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.spec import Component, MethodSpec
from benchmarks import machine
from benchmarks.models import MODEL_ID, load
from benchmarks.page import RESULTS, replace_part, table
from benchmarks.recipes import METHOD
from benchmarks.rounds import alternate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from attrib_batch.attribution.engine import Budget
    from attrib_batch.models.load import LoadedModel

HOOK_BATCH = 64
TOLERANCE = 1e-4
"""Largest difference between two ways to the same scores, relative to the largest score."""
PREFIX_CASES = ((1, 8, 1000), (1, 64, 1000), (1, 512, 1000), (2, 512, 1000), (1, 64, 8000))
"""Prefixes, pairs, tokens of a prefix."""
OWN_TOKENS = 7
PASSES_BUDGET = 65_536
Scores = dict[int, np.ndarray]


class _OneShape(PaddedPasses):
    """How pairs were computed before shapes were mixed: those of one length and one first difference at a time."""

    def together(self, pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
        return by_shape(pairs)


def engine_scores(model: LoadedModel, pairs: Sequence[EncodedPair], budget: Budget) -> Scores:
    """The engine's ``z`` scores of every pair from its first difference on (layer, head, position)."""
    found: Scores = {}
    for _, outcome in score_pairs(model, pairs, [METHOD], budget):
        if not isinstance(outcome, ScoredBatch):
            raise TypeError(f"a pair was not scored: {outcome}")
        for pair, scores in zip(outcome.pairs, outcome.result.scores[Component.Z], strict=True):
            found[pair.pair_id] = scores
    return found


def one_shape_at_a_time(model: LoadedModel, pairs: Sequence[EncodedPair]) -> Scores:
    """The same, by micro-batches of one shape behind copies of their prefixes."""
    with patch.object(engine, "passes_for", _OneShape):
        return engine_scores(model, pairs, TokenBudget(8192))


def padded_hooks(model: LoadedModel, pairs: Sequence[EncodedPair], batch: int = HOOK_BATCH) -> Scores:
    """Hand-written torch hooks: sorted by length, padded on the right, no prefix, last positions unembedded together.

    Two forward passes and one backward pass, parameters frozen, the clean run without a graph.
    """
    module, config = model.module, model.module.config
    found: Scores = {}
    ordered = sorted(pairs, key=lambda pair: pair.n_tokens)
    for start in range(0, len(ordered), batch):
        some = ordered[start : start + batch]
        width = max(pair.n_tokens for pair in some)
        last = torch.tensor([pair.n_tokens - 1 for pair in some])
        answers = torch.tensor([[pair.answers[0], pair.wrong_answers[0]] for pair in some])
        runs: list[list[torch.Tensor]] = []
        for side, graph in (("clean", False), ("corrupted", True)):
            ids = torch.tensor([[*getattr(pair, side), *[0] * (width - pair.n_tokens)] for pair in some])
            runs.append([])
            with torch.set_grad_enabled(graph):
                logits = _read(module, ids, last, runs[-1])
        right, wrong = logits.gather(-1, answers).unbind(-1)
        gradients = torch.autograd.grad((right - wrong).sum(), runs[1])
        layers = [
            (g * (a - b.detach())).unflatten(-1, (config.num_attention_heads, -1)).sum(-1).transpose(1, 2)
            for g, a, b in zip(gradients, *runs, strict=True)
        ]
        scores = torch.stack(layers, 1).numpy()
        for index, pair in enumerate(some):
            found[pair.pair_id] = scores[index, ..., pair.first_difference : pair.n_tokens]
    return found


def _read(module: Any, ids: torch.Tensor, last: torch.Tensor, into: list[torch.Tensor]) -> torch.Tensor:
    def keep(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and not args[0].requires_grad:
            args[0].requires_grad_(True)
        into.append(args[0])

    handles = [layer.self_attn.o_proj.register_forward_pre_hook(keep) for layer in module.model.layers]
    try:
        hidden = module.model(ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    logits: torch.Tensor = module.lm_head(hidden[torch.arange(len(ids)), last])
    return logits


def check_same(one: Scores, other: Scores) -> None:
    """Compare two ways to the same scores.

    Raises:
        ValueError: they differ by more than rounding.
    """
    largest = max(float(np.abs(scores).max()) for scores in one.values())
    worst = max(float(np.abs(scores - other[pair_id]).max()) for pair_id, scores in one.items())
    if one.keys() != other.keys() or not worst <= TOLERANCE * largest:
        raise ValueError(f"scores differ by {worst:.2g} where the largest is {largest:.2g}")


def mixed_ioi(model: LoadedModel, n_pairs: int) -> list[EncodedPair]:
    """IOI pairs of 34 wordings, each beside its mirror."""
    rows = list(generate_ioi(n_pairs, seed=0))
    found = encode_pairs(rows, model.tokenizer, prepend_bos=False)
    return [pair for pair in found if isinstance(pair, EncodedPair)]


def natural(model: LoadedModel, n_pairs: int) -> list[EncodedPair]:
    """Stretches of this project's own prose of 8 to 60 tokens, one token replaced: no two pairs have one shape."""
    root = Path(__file__).parent.parent
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs/pages").rglob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    tokens = model.tokenizer(text)["input_ids"]
    rng = random.Random(0)  # noqa: S311 - no secret depends on it
    shapes = [(n_tokens, first) for n_tokens in range(8, 61) for first in range(1, n_tokens - 1)]
    pairs = []
    for number, (n_tokens, first) in enumerate(rng.sample(shapes, n_pairs)):
        start = rng.randrange(len(tokens) - n_tokens)
        clean = tokens[start : start + n_tokens]
        other = next(token for token in iter(partial(rng.choice, tokens), None) if token != clean[first])
        pairs.append(_pair(number, clean, [*clean[:first], other, *clean[first + 1 :]], first))
    return pairs


def shared_prefixes(model: LoadedModel, n_prefixes: int, n_pairs: int, length: int) -> list[EncodedPair]:
    """Pairs that share long prefixes, equally many each, and differ in the first of their own tokens."""
    rng = random.Random(0)  # noqa: S311 - no secret depends on it

    def some(count: int) -> list[int]:
        return [rng.randrange(1000, model.dimensions.d_vocab) for _ in range(count)]

    starts = [some(length) for _ in range(n_prefixes)]
    pairs = []
    for number in range(n_pairs):
        start, own = starts[number * n_prefixes // n_pairs], some(OWN_TOKENS)
        pairs.append(_pair(number, [*start, *own], [*start, *some(1), *own[1:]], length))
    return pairs


def _pair(number: int, clean: Sequence[int], corrupted: Sequence[int], first: int) -> EncodedPair:
    return EncodedPair(
        pair_id=number,
        clean=tuple(clean),
        corrupted=tuple(corrupted),
        answers=(1000 + number % 97,),
        wrong_answers=(2000 + number % 89,),
        first_difference=first,
        roles=(None,) * len(clean),
        template=None,
        group=None,
    )


def compare(fast: Callable[[], Scores], slow: Callable[[], Scores], n_rounds: int) -> str:
    """How many times as long the slow way takes: the median, and the extremes."""
    check_same(fast(), slow())
    ratio = alternate({"fast": fast, "slow": slow}, n_rounds).ratio("slow", "fast")
    return f"**{ratio.median:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"


def speeds(model: LoadedModel, n_pairs: int, n_rounds: int) -> str:
    """The engine beside itself with one shape at a time, and beside hand-written hooks."""
    auto = MemoryBudget(torch.device("cpu"))
    rows = []
    for name, pairs in (
        (f"{n_pairs:,} IOI pairs of 34 wordings with their mirrors", mixed_ioi(model, n_pairs)),
        (f"{n_pairs:,} natural stretches of 8 to 60 tokens, no two of one shape", natural(model, n_pairs)),
    ):
        ours = partial(engine_scores, model, pairs, auto)
        before = compare(ours, partial(one_shape_at_a_time, model, pairs), n_rounds)
        rows.append((name, before, compare(ours, partial(padded_hooks, model, pairs), n_rounds)))
    return table(("pairs", "beside one shape at a time", "beside padded hooks, batches of 64"), rows)


def passes_and_padding(model: LoadedModel) -> str:
    """Count passes and padding of 1,000 pairs of 34 wordings, under a budget that all fit in."""
    pairs = mixed_ioi(model, 1000)
    calls: list[int] = []
    embedding = model.module.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _module, args, _output: calls.append(args[0].numel()))
    try:
        engine_scores(model, pairs[:2], TokenBudget(PASSES_BUDGET))
        calls.clear()
        engine_scores(model, pairs, TokenBudget(PASSES_BUDGET))
    finally:
        handle.remove()
    prompts = {tokens for pair in pairs for tokens in (pair.clean, pair.corrupted)}
    suffixes = {pair.corrupted: pair.first_difference for pair in pairs} | {p.clean: p.first_difference for p in pairs}
    needed = sum(len(tokens) - first for tokens, first in suffixes.items())
    return (
        f"1,000 pairs of 34 wordings, {len(prompts):,} prompts, at a budget of {PASSES_BUDGET:,} tokens: "
        f"**{len(calls)} passes** of {', '.join(f'{size:,}' for size in calls)} tokens; what the tokens alone need are "
        f"as many passes as there are kinds (prefixes that prompts begin with, what follows them, suffixes with and "
        f"without a graph). No position is padding: prompts have {needed:,} suffix tokens (targets: 1.5 times the "
        f"passes, 10 % padding)."
    )


def _measure_prefixes(n_prefixes: int, n_pairs: int, length: int, *, hooks: bool) -> dict[str, float]:
    """Score pairs with long prefixes in this process, and say what it took."""
    model = load(MODEL_ID)
    pairs = shared_prefixes(model, n_prefixes, n_pairs, length)
    budget = MemoryBudget(torch.device("cpu"))
    engine_scores(model, shared_prefixes(model, 1, 2, 8), budget)
    before = peak_memory()
    found: dict[str, float] = {}
    some = partial(engine_scores, model, pairs, budget)
    check = some()
    found["above"] = (peak_memory() - before) / 2**30
    if hooks:
        few = pairs[:4]
        check_same({pair.pair_id: check[pair.pair_id] for pair in few}, padded_hooks(model, few, batch=2))
        timings = alternate({"engine": some, "hooks": partial(padded_hooks, model, few, batch=2)}, 3)
        seconds = {name: statistics.median(of) for name, of in timings.seconds.items()}
        found["times"] = (seconds["hooks"] / len(few)) / (seconds["engine"] / len(pairs))
    return found


def prefixes() -> str:
    """Peak memory of pairs with long shared prefixes, each case in a process of its own."""
    rows = []
    for case in PREFIX_CASES:
        hooks = case == (1, 512, 1000)
        command = [sys.executable, "-m", "benchmarks.shapes", "--case", *map(str, case), str(int(hooks))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        times = f"{found['times']:.0f}" if hooks else ""
        rows.append((f"{case[1]}", f"{case[0]}", f"{case[2]:,}", f"{found['above']:.2f}", times))
    return table(
        ("pairs", "prefixes", "tokens of a prefix", "peak above the model, GiB", "times as fast as hooks"), rows
    )


def exact_costs(model: LoadedModel, n_rounds: int) -> str:
    """What activation patching of all heads at the last position costs, in plain forward passes of a prompt."""
    pairs = mixed_ioi(model, 32)
    method = MethodSpec.model_validate({"id": "exact", "at": "last"})
    tokens: list[tuple[int, int]] = []

    def exact() -> None:
        list(score_pairs(model, pairs, [method], TokenBudget(8192)))

    layers = model.module.get_submodule(model.architecture.layers)
    handles = [
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[:2]),
            with_kwargs=True,
        )
        for layer in layers
    ]
    exact()
    for handle in handles:
        handle.remove()
    counted = sum(rows * positions for rows, positions in tokens) / len(layers) / sum(pair.n_tokens for pair in pairs)

    def together() -> None:
        for start in range(0, len(pairs), HOOK_BATCH):
            _plain(model, pairs[start : start + HOOK_BATCH])

    def alone() -> None:
        for pair in pairs:
            _plain(model, [pair])

    together(), alone()
    timings = alternate({"exact": exact, "together": together, "alone": alone}, n_rounds)
    by_batch, by_prompt = timings.ratio("exact", "together"), timings.ratio("exact", "alone")
    return (
        f"All heads at the last position of {len(pairs)} IOI pairs, "
        f"{model.dimensions.n_layers * model.dimensions.n_heads} replacements a pair: as many layers of tokens as "
        f"**{counted:.1f}** plain forward passes of a prompt, and the time of **{by_prompt.median:.1f}** "
        f"({by_prompt.low:.1f} to {by_prompt.high:.1f}) such passes one prompt at a time, {by_batch.median:.1f} "
        f"({by_batch.low:.1f} to {by_batch.high:.1f}) in batches (target 4)."
    )


def _plain(model: LoadedModel, pairs: Sequence[EncodedPair]) -> None:
    width = max(pair.n_tokens for pair in pairs)
    ids = torch.tensor([[*pair.clean, *[0] * (width - pair.n_tokens)] for pair in pairs])
    last = torch.tensor([pair.n_tokens - 1 for pair in pairs])
    with torch.no_grad():
        hidden = model.module.model(ids, use_cache=False).last_hidden_state
        model.module.lm_head(hidden[torch.arange(len(ids)), last])


def parts(n_pairs: int, n_rounds: int) -> Iterator[str]:
    """Measure, and give the page's sections."""
    model = load(MODEL_ID)
    yield "### Mixed shapes\n\nTimes as fast as another way, median (and range) of alternating rounds.\n\n" + speeds(
        model, n_pairs, n_rounds
    )
    yield "### Passes and padding\n\n" + passes_and_padding(model)
    yield "### Activation patching\n\n" + exact_costs(model, n_rounds)
    yield (
        f"### Long shared prefixes\n\nPairs of a shared prefix and {OWN_TOKENS} tokens of their own, defaults "
        "throughout, a process for each case (targets for 512 pairs: 1.5 GiB, 25 times as fast as hand-written hooks, "
        "here in batches of two; before prefixes were held once: 1.7 GB for 8 pairs, 11.7 GB for 64).\n\n" + prefixes()
    )


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    parser.add_argument("--pairs", type=int, default=512, help="pairs of the comparisons of mixed shapes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        *case, hooks = options.case
        print(json.dumps(_measure_prefixes(*case, hooks=bool(hooks))))
        return 0
    text = (
        f"## (l) Mixed shapes and long prefixes\n\nWritten by `python -m benchmarks.shapes`. {machine.describe()}\n\n"
    )
    text += "\n\n".join(parts(options.pairs, options.rounds))
    replace_part(options.out, "shapes", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
