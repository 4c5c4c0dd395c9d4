"""Attribution patching.

Nanda 2023 ("Attribution Patching: Activation Patching At Industrial Scale"); Syed, Rager, Conmy 2023
(arXiv 2310.10348), equation 1. For an activation a of a pair, with the metric M on the last position:

    score(a) = sum over features of  dM/da |base prompt  *  (a_other - a_base)

Denoising takes the corrupted prompt as the base and the clean prompt as the other; noising is the mirror. It is the
first-order estimate of what activation patching would measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.batches import Request, plan_rows, rows_of
from attrib_batch.attribution.contrast import Objective, sites_in_order, subtract, vocabulary_of
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.passes.base import by_token
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.references import Replacement, ablated_logits
from attrib_batch.attribution.scores import Scores
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component


def attribution_patching(
    passes: Passes,
    pairs: Sequence[EncodedPair],
    methods: Sequence[Method],
    *,
    batch_tokens: int,  # noqa: ARG001 - a SharedScoringFunction; what it computes for the pairs fits by their choice
) -> list[Scores]:
    """Score pairs of any shapes in one forward and one backward pass.

    Args:
        passes: of the model.
        pairs: pairs of any shapes.
        methods: what is asked of every pair; both directions together share their forward passes.
        batch_tokens: most suffix positions at once; those of the pairs are no more.

    Returns:
        For each method, scores at the positions from the first difference on; before it every score is exactly 0.
    """
    model = passes.model
    components = dict.fromkeys(component for method in methods for component in method.components)
    sites = sites_in_order(model, list(components))
    rows = plan_rows(pairs, [Request(method.direction, method.metric) for method in methods])
    row_with = rows_of(pairs)
    layouts = [passes.layout([row_with[tokens] for tokens in of]) for of in (rows.graph, rows.plain) if of]
    vocabulary = vocabulary_of(model, pairs, methods)
    forward = partial(passes.forward, sites=list(sites.values()), vocabulary=vocabulary)
    plain = [forward(layout, graph=False) for layout in layouts[1:]]
    graph = forward(layouts[0], graph=True)

    logits = _join([graph.logits, *(passed.logits for passed in plain)])
    entries = Entries.of(pairs)
    patches = []
    for method, base, other in zip(methods, rows.base, rows.other, strict=True):
        base_logits, other_logits = (Index(np.array(of)).take(logits) for of in (base, other))
        replacement = None
        if method.reference is not None:
            mine = {component: site for component, site in sites.items() if component in method.components}
            other_logits = ablated_logits(passes, pairs, mine, method.reference, vocabulary)
            replacement = method.reference.at(pairs, entries)
        objective = Objective.of(method, pairs, base_logits, other_logits, vocabulary)
        at = entries.index(base, layouts[0]), entries.index(other, *layouts)
        patches.append(_Patch(*at, replacement, objective, {component: [] for component in method.components}))
    keys = list(graph.sites[0])
    gradients = iter(
        torch.autograd.grad(
            _total(rows.graph_of, graph.logits, [patch.objective for patch in patches]),
            [layer[key] for layer in graph.sites for key in keys],
        )
    )
    with torch.no_grad():
        for layer in range(model.dimensions.n_layers):
            gradient = {key: next(gradients) for key in keys}
            for component, site in sites.items():
                of_graph = graph.at(layer, site, model.dimensions)
                of_all = _join([of_graph, *(passed.at(layer, site, model.dimensions) for passed in plain)])
                slope = by_token(gradient[site.key], site, model.dimensions)
                for patch in patches:
                    if component in patch.scores:
                        score = patch.score(component, layer, slope, of_graph, of_all)
                        # Layers may lie on several devices; they meet on one, and leave it in one transfer.
                        patch.scores[component].append(score.to(model.device, non_blocking=True))
    return [patch.result(entries) for patch in patches]


@dataclass(frozen=True)
class _Patch:
    """One method on a micro-batch: where its pairs' prompts are, and the scores of the layers so far."""

    base: Index
    """Among the tokens of the graph pass."""
    other: Index
    """Among those of both passes."""
    replacement: Replacement | None
    """What stands in place of the other prompt's activations, if anything does."""
    objective: Objective
    scores: dict[Component, list[Float[Tensor, "entry head"]]]

    def score(
        self,
        component: Component,
        layer: int,
        slope: Float[Tensor, "graph_token head feature"],
        of_graph: Float[Tensor, "graph_token head feature"],
        of_all: Float[Tensor, "token head feature"],
    ) -> Float[Tensor, "entry head"]:
        """Return the scores of a component at a layer: gradient times difference, summed over features."""
        base = self.base.take(of_graph)
        other = self.other.take(of_all) if self.replacement is None else self.replacement.of(component, layer, base)
        difference = subtract(other, base)
        return (at_least_float32(self.base.take(slope)) * difference).sum(-1)

    def result(self, entries: Entries) -> Scores:
        """Return the scores of all layers."""
        return self.objective.with_scores({c: torch.stack(layers) for c, layers in self.scores.items()}, entries.count)


def _total(
    graph_of: Sequence[tuple[int, int]], logits: Float[Tensor, "graph *place vocab"], objectives: Sequence[Objective]
) -> Float[Tensor, ""]:
    """Add up every graph row's own metric: rows do not interact, so its gradient on a row is that row's."""
    total = logits.new_zeros((), dtype=torch.float32)
    for number, objective in enumerate(objectives):
        mine = [(row, pair) for row, (request, pair) in enumerate(graph_of) if request == number]
        if mine:
            row, pair = (Index(np.array(indices)) for indices in zip(*mine, strict=True))
            total = total + objective(row.take(logits), pair).sum()
    return total


def _join(parts: Sequence[Float[Tensor, "_ ..."]]) -> Float[Tensor, "all ..."]:
    return parts[0].detach() if len(parts) == 1 else torch.cat([part.detach() for part in parts])
