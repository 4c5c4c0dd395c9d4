"""``python -m benchmarks.methods``: how near each method comes to activation patching, and what it costs.

On the bundled model and pairs of indirect object identification: correlations of single scores, over pairs, layers and
heads, with those of ``exact``. Times are those of `score_pairs` in alternating rounds, ``z`` alone. Writes its part of
``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr

from attrib_batch.attribution.batches import base_and_other, rows_of
from attrib_batch.attribution.contrast import sites_in_order, vocabulary_of
from attrib_batch.attribution.engine import ScoredBatch, score_pairs
from attrib_batch.attribution.memory import MemoryBudget
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import passes_for
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Component, MethodSpec
from benchmarks import machine, workloads
from benchmarks.models import MODEL_ID, load
from benchmarks.page import RESULTS, replace_part, table
from benchmarks.rounds import Timings, alternate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from attrib_batch.models.load import LoadedModel

TABLE = Path(__file__).parent.parent / "datasets" / "ioi.parquet"
Z = Component.Z
IG_STEPS = 8
METHODS: Mapping[str, Mapping[str, Any]] = {
    "atp": {},
    "atp_ig": {"ig_steps": IG_STEPS},
    "atp_hvp": {},
    "atp_star": {},
    "relp": {},
    "refined": {},
}
BUDGET = MemoryBudget(torch.device("cpu"))
"""One for all: it measures a method once."""
CHEAPER = {"budget": 0.36}
"""The least that reaches both targets on pairs of all three kinds."""
EVERYWHERE = {"budget": 1.5}
Found = dict[Component, np.ndarray]
"""Scores of each component of all pairs, one after the other: those at the last position, or all."""


def method(kind: str, components: Sequence[Component] = (Z,), **options: Any) -> MethodSpec:
    """A method of a kind."""
    return MethodSpec.model_validate({"id": kind, "kind": kind, "components": list(components), **options})


def scores(model: LoadedModel, pairs: Sequence[EncodedPair], asked: MethodSpec, *, last: bool = True) -> Found:
    """Score pairs; at the last position, or at all from each pair's first difference on."""
    of_pair: dict[int, dict[Component, np.ndarray]] = {}
    for _, outcome in score_pairs(model, pairs, [asked], BUDGET):
        if not isinstance(outcome, ScoredBatch):
            raise TypeError(f"a pair was not scored: {outcome}")
        for index, pair in enumerate(outcome.pairs):
            of_pair[pair.pair_id] = {name: values[index] for name, values in outcome.result.scores.items()}
    return {
        name: np.concatenate(
            [
                (of_pair[pair.pair_id][name][..., -1] if last else of_pair[pair.pair_id][name]).astype(float).ravel()
                for pair in pairs
            ]
        )
        for name in asked.components
    }


def agreement(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Pearson's and Spearman's correlation."""
    return float(np.corrcoef(found, truth)[0, 1]), float(spearmanr(found, truth).statistic)


def from_table(model: LoadedModel, n_pairs: int) -> list[EncodedPair]:
    """The first pairs of the project's table."""
    rows = PairTable.open(TABLE).rows(0, n_pairs)
    found = encode_pairs(rows, model.tokenizer, prepend_bos=False)
    return [pair for pair in found if isinstance(pair, EncodedPair)]


def by_component(model: LoadedModel, pairs: Sequence[EncodedPair]) -> str:
    """Every method and component at the last position."""
    components = list(model.architecture.sites)
    truth = scores(model, pairs, method("exact", components, at="last"))
    columns = {
        # A budget is for all components of a method: each is one of its own here.
        kind: {name: scores(model, pairs, method(kind, [name], **options))[name] for name in components}
        if kind == "refined"
        else scores(model, pairs, method(kind, components, **options))
        for kind, options in METHODS.items()
    }
    rows = []
    for name in components:
        row = [f"`{name}`"]
        for kind, found in columns.items():
            exact = np.abs(truth[name]) if kind == "atp_star" else truth[name]
            row.append("{:.3f} / {:.3f}".format(*agreement(found[name], exact)))
        rows.append(row)
    return table(["component", *(f"`{kind}`" for kind in METHODS)], rows)


def by_wording(model: LoadedModel, n_pairs: int) -> str:
    """``z`` at the last position, of pairs of three kinds."""
    kinds = {
        "the project's table, 34 wordings": from_table(model, n_pairs),
        "the tutorial's wording": workloads.plain(model, n_pairs).pairs,
        "the same behind a preamble of 70 tokens": workloads.with_preamble(model, n_pairs).pairs,
    }
    asked = {"`atp`": method("atp"), "`refined`": method("refined"), "`budget: 0.36`": method("refined", **CHEAPER)}
    rows = []
    for name, pairs in kinds.items():
        truth = scores(model, pairs, method("exact", at="last"))[Z]
        of = [agreement(scores(model, pairs, one)[Z], truth) for one in asked.values()]
        rows.append([name, *(f"{pearson:.5f} / {spearman:.4f}" for pearson, spearman in of)])
    return table(["pairs", *asked], rows)


def everywhere(model: LoadedModel, pairs: Sequence[EncodedPair], n_rounds: int) -> str:
    """``z`` at all positions from the first difference on."""
    truth = scores(model, pairs, method("exact"), last=False)[Z]
    asked = {"atp": method("atp"), "refined": method("refined", **EVERYWHERE)}
    found = {kind: agreement(scores(model, pairs, one, last=False)[Z], truth) for kind, one in asked.items()}
    timings = alternate({kind: partial(scores, model, pairs, one) for kind, one in asked.items()}, n_rounds)
    ratio = timings.ratio("refined", "atp")
    return (
        f"`z` at all positions from the first difference on, {len(pairs)} pairs of the table: `atp` "
        f"{found['atp'][0]:.4f} / {found['atp'][1]:.4f}, `refined` with `budget: {EVERYWHERE['budget']}` "
        f"**{found['refined'][0]:.4f}** / {found['refined'][1]:.4f} at **{ratio.median:.2f}** times the time of `atp` "
        f"({ratio.low:.2f} to {ratio.high:.2f}; targets 0.99 at 2.5)."
    )


def times(model: LoadedModel, pairs: Sequence[EncodedPair], n_rounds: int) -> str:
    """What methods take beside ``atp``, and beside what their passes would."""
    asked = {kind: method(kind, **options) for kind, options in METHODS.items()}
    asked |= {
        "refined, `budget: 0.36`": method("refined", **CHEAPER),
        "exact, last position": method("exact", at="last"),
    }
    variants = {name: partial(scores, model, pairs, one) for name, one in asked.items()}
    parts = {f"pass: {name}": run for name, run in _passes(model, pairs).items()}
    for run in (*variants.values(), *parts.values()):
        run()
    timings = alternate({**variants, **parts}, n_rounds)
    expected = _expected(timings, model.dimensions.n_layers)
    rows = []
    for name in asked:
        ratio = timings.ratio(name, "atp")
        over = ""
        if name in expected:
            shares = [taken / passes for taken, passes in zip(timings.seconds[name], expected[name], strict=True)]
            over = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        rows.append([name, f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}", over])
    return table(["method", "times the time of `atp`", "range", "over its passes, target 1.1"], rows)


def _passes(model: LoadedModel, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Forward passes of the base prompts' suffixes without and with a graph, and with a backward pass."""
    sites = list(sites_in_order(model, [Z]).values())
    vocabulary = vocabulary_of(model, pairs, [Method.of(method("atp"))])
    row_with = rows_of(pairs)
    passes = passes_for(model)
    passes.begin(pairs)
    passes.prepare(pairs)
    layout = passes.layout([row_with[base_and_other(pair, "denoise")[0]] for pair in pairs])
    forward = partial(passes.forward, layout, sites, vocabulary=vocabulary)

    def backward() -> None:
        passed = forward(graph=True)
        torch.autograd.grad(passed.logits.sum(), [value for layer in passed.sites for value in layer.values()])

    return {"plain": partial(forward, graph=False), "graph": partial(forward, graph=True), "backward": backward}


def _expected(timings: Timings, n_layers: int) -> dict[str, list[float]]:
    """Of methods of many passes, by round: what ``atp`` takes, and the passes that come to it."""
    names = ("atp", "pass: plain", "pass: graph", "pass: backward")
    found: dict[str, list[float]] = {"atp_ig": [], "atp_star": []}
    for atp, plain, graph, both in zip(*(timings.seconds[name] for name in names), strict=True):
        # Both compute the base prompt without a graph too, which atp does not.
        found["atp_ig"].append(atp + plain + (IG_STEPS - 1) * both)
        found["atp_star"].append(atp + plain + (n_layers - 1) / 2 * (both - graph))
    return found


def parts(n_pairs: int, n_everywhere: int, n_rounds: int) -> Iterator[str]:
    """Measure, and give the page's sections."""
    model = load(MODEL_ID)
    pairs = from_table(model, n_pairs)
    yield (
        f"Pearson / Spearman at the last position, {len(pairs)} pairs of the project's table in one task; `atp_star` "
        "beside magnitudes, `refined` for one component at a time.\n\n" + by_component(model, pairs)
    )
    yield (
        f"`z` at the last position, {n_pairs} pairs of each kind (targets for `refined`: 0.999 / 0.995).\n\n"
        + by_wording(model, n_pairs)
    )
    yield f"`z` alone, {len(pairs)} pairs of the table, {n_rounds} alternating rounds.\n\n" + times(
        model, pairs, n_rounds
    )
    yield everywhere(model, pairs[:n_everywhere], n_rounds)


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--pairs", type=int, default=64, help="pairs that are measured at the last position")
    parser.add_argument("--everywhere", type=int, default=24, help="pairs that are measured at all positions")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison of times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    started = time.perf_counter()
    found = list(parts(options.pairs, options.everywhere, options.rounds))
    seconds = time.perf_counter() - started
    text = (
        f"## (o) Methods against activation patching\n\nWritten by `python -m benchmarks.methods` in {seconds:.0f} s. "
        f"{machine.describe()}\n\n"
    )
    text += "\n\n".join(found)
    replace_part(options.out, "methods", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
