"""Attribution patching.

Nanda 2023 ("Attribution Patching: Activation Patching At Industrial Scale"); Syed, Rager, Conmy 2023
(arXiv 2310.10348), equation 1. For an activation a of a pair, with the metric M on the last position:

    score(a) = sum over features of  dM/da |base prompt  *  (a_other - a_base)

Denoising takes the corrupted prompt as the base and the clean prompt as the other; noising is the mirror. It is the
first-order estimate of what activation patching would measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.batches import Request, plan_rows
from attrib_batch.attribution.contrast import Objective, rows_at, sites_in_order
from attrib_batch.attribution.forward import PrefixCache, forward_suffixes
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.models.families import Site, SiteKey
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.spec.registries.metrics import metric_entry


def attribution_patching(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    methods: Sequence[Method],
    *,
    batch_tokens: int,  # noqa: ARG001 - a SharedScoringFunction; what it computes for the pairs fits by their choice
) -> list[BatchScores]:
    """Score pairs of one shape (equal length, equal first difference) in one forward and one backward pass.

    Args:
        model: the model.
        pairs: pairs of one shape.
        methods: what is asked of every pair; both directions together share their forward passes.
        batch_tokens: most suffix positions at once; those of the pairs are no more.

    Returns:
        For each method, scores at the positions from the first difference on; before it every score is exactly 0.
    """
    components = dict.fromkeys(component for method in methods for component in method.components)
    sites = sites_in_order(model, list(components))
    rows = plan_rows(pairs, [Request(method.direction, method.metric) for method in methods])
    prefix = PrefixCache(model, [*rows.graph, *rows.plain], pairs[0].first_difference)
    vocabulary = None if model.sharded else _vocabulary(pairs, methods)
    forward = partial(forward_suffixes, model, prefix=prefix, sites=list(sites.values()), vocabulary=vocabulary)
    plain = forward(rows.plain, graph=False) if rows.plain else None
    graph = forward(rows.graph, graph=True)

    logits = _stack_rows(graph.logits.detach(), plain.logits if plain else None)
    patches = [
        _Patch(
            torch.tensor(base),
            torch.tensor(other),
            Objective.of(
                method, pairs, rows_at(logits, torch.tensor(base)), rows_at(logits, torch.tensor(other)), vocabulary
            ),
            {component: [] for component in method.components},
        )
        for method, base, other in zip(methods, rows.base, rows.other, strict=True)
    ]
    keys = list(graph.sites[0])
    gradients = iter(
        torch.autograd.grad(
            _total(rows.graph_of, graph.logits, [patch.objective for patch in patches]),
            [layer[key] for layer in graph.sites for key in keys],
        )
    )
    with torch.no_grad():
        for index, layer in enumerate(graph.sites):
            gradient = {key: next(gradients) for key in keys}
            activation = {
                key: _stack_rows(layer[key].detach(), plain.sites[index][key] if plain else None) for key in keys
            }
            for patch in patches:
                patch.score_layer(model, sites, gradient, activation)
    return [patch.result() for patch in patches]


@dataclass(frozen=True)
class _Patch:
    """One method on a micro-batch: which rows are its pairs' prompts, and the scores of the layers so far."""

    base: Int[Tensor, " pair"]
    other: Int[Tensor, " pair"]
    objective: Objective
    scores: dict[Component, list[Float[Tensor, "pair position head"]]]

    def score_layer(
        self,
        model: LoadedModel,
        sites: Mapping[Component, Site],
        gradient: Mapping[SiteKey, Float[Tensor, "graph ..."]],
        activation: Mapping[SiteKey, Float[Tensor, "row ..."]],
    ) -> None:
        """Add the next layer's scores: gradient times difference, in float32, summed over features."""
        products = {
            key: rows_at(gradient[key], self.base).float()
            * (rows_at(activation[key], self.other) - rows_at(activation[key], self.base)).float()
            for key in {sites[component].key for component in self.scores}
        }
        for component, layers in self.scores.items():
            score = sites[component].view(products[sites[component].key], model.dimensions).sum(-1)
            # Layers may lie on several devices; they meet on one, and leave it in one transfer.
            layers.append(score.to(model.device, non_blocking=True))

    def result(self) -> BatchScores:
        """Return the scores of all layers."""
        return self.objective.with_scores({c: torch.stack(s).transpose(-1, -2) for c, s in self.scores.items()})


def _vocabulary(pairs: Sequence[EncodedPair], methods: Sequence[Method]) -> list[int] | None:
    """Return the tokens whose logits are needed, None for all."""
    if not all(metric_entry(method.metric).of_answers_alone for method in methods):
        return None
    return sorted({token for pair in pairs for token in (*pair.answers, *pair.wrong_answers)})


def _total(
    graph_of: Sequence[tuple[int, int]], logits: Float[Tensor, "graph vocab"], objectives: Sequence[Objective]
) -> Float[Tensor, ""]:
    """Add up every graph row's own metric: rows do not interact, so its gradient on a row is that row's."""
    total = logits.new_zeros((), dtype=torch.float32)
    for number, objective in enumerate(objectives):
        mine = [(row, pair) for row, (request, pair) in enumerate(graph_of) if request == number]
        if mine:
            row, pair = (torch.tensor(indices) for indices in zip(*mine, strict=True))
            total = total + objective(rows_at(logits, row), pair).sum()
    return total


def _stack_rows(
    graph: Float[Tensor, "graph ..."], plain: Float[Tensor, "plain ..."] | None
) -> Float[Tensor, "row ..."]:
    return graph if plain is None else torch.cat([graph, plain])
