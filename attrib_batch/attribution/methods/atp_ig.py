"""Attribution patching with integrated gradients.

Sundararajan, Taly, Yan 2017 (arXiv 1703.01365), equation 1, on the path that Hanna, Pezzelle, Belinkov 2024
("EAP-IG", arXiv 2403.17806, section 3) take: the token embeddings move straight from the base prompt's to the
other prompt's, and the gradient on every activation is averaged over the way. With S = ``ig_steps`` midpoints,

    score(a) = sum over features of  (a_other - a_base) * 1/S sum over s < S of dM/da |embeddings at (s + 1/2) / S

A saturated place, where the gradient of the base prompt alone vanishes, is left behind along the path. At the
embeddings themselves the scores of a pair add up to M(other) - M(base) as S grows (completeness); midpoints converge to
that with the square of S.

The path is laid through what enters the first layer. Between it and the embeddings stand at most a constant factor, a
linear map and position embeddings that both prompts share, so a straight line through one is a straight line through
the other. BLOOM alone normalises its embeddings; there the path is one of normalised embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attrib_batch.attribution.contrast import Contrast, rows_at, sites_in_order
from attrib_batch.attribution.forward import forward_suffixes, read_start
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair


def integrated_gradients(
    model: LoadedModel, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int
) -> BatchScores:
    """Score pairs of one shape (equal length, equal first difference), ``ig_steps`` gradient runs each.

    Every step of every pair is a row; rows are run together as far as ``batch_tokens`` suffix positions go.
    """
    steps: int = method.parameters["ig_steps"]
    sites = sites_in_order(model, method.components)
    contrast = Contrast.of(model, pairs, method, list(sites.values()))
    start = read_start(model, contrast.base_rows, contrast.prefix)
    way = read_start(model, contrast.other_rows, contrast.prefix) - start
    n_positions = pairs[0].n_tokens - pairs[0].first_difference
    totals = {
        component: torch.zeros(
            model.dimensions.n_layers,
            len(pairs),
            model.dimensions.heads_of(component) or 1,
            n_positions,
            device=start.device,
        )
        for component in method.components
    }
    for rows in torch.split(torch.arange(len(pairs) * steps), max(1, batch_tokens // n_positions)):
        pair, step = rows // steps, rows % steps
        fraction = ((step + 0.5) / steps).to(start).view(-1, 1, 1)
        passed = forward_suffixes(
            model,
            [contrast.base_rows[index] for index in pair.tolist()],
            contrast.prefix,
            list(sites.values()),
            graph=True,
            start=rows_at(start, pair) + fraction * rows_at(way, pair),
        )
        keys = list(passed.sites[0])
        wanted = [layer[key] for layer in passed.sites for key in keys]
        gradients = iter(torch.autograd.grad(contrast.objective(passed.logits, pair).sum(), wanted))
        for layer, difference in enumerate(contrast.difference):
            products = {key: next(gradients).float() * rows_at(difference[key], pair).float() for key in keys}
            for component, site in sites.items():
                row_scores = site.view(products[site.key], model.dimensions).sum(-1).transpose(1, 2) / steps
                totals[component][layer].index_add_(0, pair.to(start.device), row_scores.to(start.device))
    return contrast.objective.with_scores(totals)
