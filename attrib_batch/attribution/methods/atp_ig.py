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
the other. BLOOM alone normalises its embeddings; there the path is one of normalised embeddings. Where activations are
replaced by zeros or means, the path leads to that in place of the other prompt's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.contrast import Contrast, sites_in_order
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes import Layout, Passes
from attrib_batch.attribution.passes.base import by_token
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.attribution.scores import Scores
from attrib_batch.models.devices import on_device
from attrib_batch.pairs.encoding.encode import EncodedPair


def integrated_gradients(passes: Passes, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int) -> Scores:
    """Score pairs of any shapes by ``ig_steps`` gradients each.

    Every step of every pair is a row; rows are computed together as far as ``batch_tokens`` suffix positions go.
    """
    model, steps = passes.model, int(method.parameters["ig_steps"])
    dimensions = model.dimensions
    sites = sites_in_order(model, method.components)
    contrast = Contrast.of(passes, pairs, method, sites)
    entries = contrast.entries
    path = _Path.of(passes, contrast)
    totals = {
        component: torch.zeros(
            dimensions.n_layers, int(entries.count.sum()), dimensions.heads_of(component) or 1, device=model.device
        )
        for component in method.components
    }
    ends = np.cumsum(entries.count)
    n_computed = np.array([pair.n_row_tokens - pair.first_difference for pair in pairs])
    for pair, step in _parts(n_computed, steps, batch_tokens):
        layout = passes.layout([contrast.base_rows[index] for index in pair.tolist()])
        passed = passes.forward(
            layout,
            list(sites.values()),
            graph=True,
            start=path.between(layout, pair, (step + 0.5) / steps),
            vocabulary=contrast.vocabulary,
        )
        keys = list(passed.sites[0])
        wanted = [layer[key] for layer in passed.sites for key in keys]
        objective = contrast.objective(passed.logits, Index(pair)).sum()
        gradients = iter(torch.autograd.grad(objective, wanted))
        first, count = entries.first[pair], entries.count[pair]
        at = Index(layout.places(np.arange(len(pair)), first, count))
        entry = Index(ranges(ends[pair] - count, count))
        for layer in range(dimensions.n_layers):
            gradient = {key: next(gradients) for key in keys}
            for component, site in sites.items():
                slope = at_least_float32(at.take(by_token(gradient[site.key], site, dimensions)))
                scores = (slope * entry.take(contrast.difference[layer][component])).sum(-1) / steps
                totals[component][layer].index_add_(0, entry.on(model.device), scores.float().to(model.device))
    return contrast.objective.with_scores(totals, entries.count)


@dataclass(frozen=True)
class _Path:
    """What enters the first layer on the way from every pair's base prompt to its other prompt."""

    base: Float[Tensor, "token d_model"]
    way: Float[Tensor, "token d_model"]
    layout: Layout
    """Of the base prompts, a row for each pair."""

    @classmethod
    def of(cls, passes: Passes, contrast: Contrast) -> _Path:
        """Read both ends."""
        layout, others = passes.layout(contrast.base_rows), passes.layout(contrast.other_rows)
        base, other = passes.start(layout), passes.start(others)
        rows, entries = np.arange(len(layout.rows)), contrast.entries
        here, there = (Index(of.places(rows, entries.first, entries.count)) for of in (layout, others))
        # Before the first difference of a pair its prompts are the same, and there is no way.
        way = torch.zeros_like(base)
        start = here.take(base)
        end = there.take(other) if contrast.replacement is None else contrast.replacement.entering(start)
        way[here.on(base.device)] = end - start
        return cls(base, way, layout)

    def between(
        self, layout: Layout, pair: Int[np.ndarray, " row"], fraction: Float[np.ndarray, " row"]
    ) -> Float[Tensor, "token d_model"]:
        """Return what enters the first layer for rows of pairs, each so far on its way."""
        first = np.array([row.first for row in layout.rows])
        count = np.array([len(row.tokens) for row in layout.rows]) - first
        source = Index(self.layout.places(pair, first, count))
        along = on_device(np.repeat(fraction, count), self.base.device).to(self.base.dtype).unsqueeze(-1)
        # Padding is on no way, and may hold anything.
        start = self.base.new_zeros(layout.n_tokens, self.base.shape[-1])
        place = Index(layout.places(np.arange(len(pair)), first, count))
        start[place.on(start.device)] = source.take(self.base) + along * source.take(self.way)
        return start


def _parts(
    count: Int[np.ndarray, " pair"], steps: int, batch_tokens: int
) -> Iterator[tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]]:
    """Divide all steps of all pairs into parts of at most so many tokens; yield the pair and the step of each row."""
    pair, step = np.divmod(np.arange(len(count) * steps), steps)
    start = 0
    while start < len(pair):
        ends = np.cumsum(count[pair[start:]])
        stop = start + max(1, int(np.searchsorted(ends, batch_tokens, side="right")))
        yield pair[start:stop], step[start:stop]
        start = stop
