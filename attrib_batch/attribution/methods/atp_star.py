"""AtP*: attribution patching with two repairs.

Kramar, Lieberum, Shah, Nanda 2024 (arXiv 2403.00745), section 3.

**QK fix** (equations 6-10). Where attention is saturated, the gradient on a query or key vanishes though replacing it
would move the attention elsewhere. So the softmax is computed again with the one query, or key, replaced, and only what
follows is linear. With A the base prompt's attention probabilities of a head, A' those after the replacement,

    I(q at t) = sum over s of         dM/dA[t, s] * (A'[t, s] - A[t, s])
    I(k at s) = sum over heads, t, u of  dM/dA[t, u] * (A'[t, u] - A[t, u])

over the query heads that a key head serves. As dM/dA[t, s] = dM/dz[t] . v[s], both are dM/dz[t] . ((A' - A) v)[t]:
the gradient on z times what the replacement does to z. Every other component takes gradient times difference, as in
``atp``.

**GradDrop** (equations 11-12). Opposite effects of later layers may cancel in a gradient. So it is taken once per layer
l with everything that layer adds to the residual stream held constant, I_l, and

    c(n) = 1 / (L - 1) * sum over l of |I_l(n)|

over all L layers. A node inside layer l has I_l = 0, so this is a mean over the drops it survives; the residual stream,
which is inside no layer, survives all L, and its mean is over L. c is never negative.

With layer l dropped, the gradient passes from its output to its input unchanged. Above it nothing is different, and
below it one backward pass through the l lower layers gives I_l; together they cost (L + 1) / 2 backward passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.attention import Attention, read_attention
from attrib_batch.attribution.batches import base_and_other
from attrib_batch.attribution.contrast import Contrast, sites_in_order
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes import Capture, Edit, Passes
from attrib_batch.attribution.passes.base import by_token
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.attribution.references import edits_everywhere
from attrib_batch.attribution.scores import Scores
from attrib_batch.models.devices import on_device
from attrib_batch.models.families import Site, SiteKey
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component

_FIXED = (Component.Q, Component.K)
_RESIDUAL = (Component.RESID_PRE, Component.RESID_MID, Component.RESID_POST)


def attribution_patching_star(
    passes: Passes, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int
) -> list[Scores]:
    """Score pairs of any shapes; the model has two layers or more. A result for each part that is computed at once."""
    most = batch_tokens
    if any(component in _FIXED for component in method.components):
        # The QK fix keeps the gradients on z of every drop: at each layer those of the drops above it.
        most = 2 * batch_tokens // passes.model.dimensions.n_layers
    parts: list[list[EncodedPair]] = []
    room = 0
    for pair in pairs:
        n_positions = pair.n_tokens - pair.first_difference
        if not parts or n_positions > room:
            parts.append([])
            room = most
        parts[-1].append(pair)
        room -= n_positions
    return [_score(passes, part, method) for part in parts]


def _score(passes: Passes, pairs: Sequence[EncodedPair], method: Method) -> Scores:
    dimensions = passes.model.dimensions
    n_layers = dimensions.n_layers
    components = list(sites_in_order(passes.model, method.components))
    fixed = [component for component in components if component in _FIXED]
    linear = sites_in_order(passes.model, [component for component in components if component not in _FIXED])
    contrast = Contrast.of(passes, pairs, method, linear)
    helpers = {Component.RESID_PRE, Component.RESID_POST} | ({Component.Z} if fixed else set())
    sites = sites_in_order(passes.model, [*{*linear, *helpers}])
    layout = passes.layout(contrast.base_rows)
    passed = passes.forward(layout, list(sites.values()), graph=True, vocabulary=contrast.vocabulary)
    every = range(len(pairs))
    objective = contrast.objective(passed.logits, Index(np.array(every))).sum()
    at = contrast.entries.index(every, layout)

    estimates: dict[Component, list[list[Tensor]]] = {component: [[] for _ in range(n_layers)] for component in linear}
    z_gradients: list[list[tuple[int, Tensor]]] = [[] for _ in range(n_layers)]
    for layer, gradients, counts in _gradients(passed, objective, sites):
        for component, site in linear.items():
            if count := counts[component]:
                slope = at_least_float32(at.take(by_token(gradients[site.key], site, dimensions)))
                estimates[component][layer].append(
                    count * (slope * contrast.difference[layer][component]).sum(-1).abs()
                )
        if fixed and (count := counts[Component.Z]):
            site = sites[Component.Z]
            z_gradients[layer].append(
                (count, at_least_float32(at.take(by_token(gradients[site.key], site, dimensions))))
            )
    scores = {
        component: torch.stack([torch.stack(parts).sum(0) for parts in layers])
        / (n_layers if component in _RESIDUAL else n_layers - 1)
        for component, layers in estimates.items()
    }
    if fixed:
        scores |= _fixed_scores(passes.model, pairs, method, fixed, z_gradients)
    return contrast.objective.with_scores(
        {component: scores[component] for component in method.components}, contrast.entries.count
    )


def _fixed_scores(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    method: Method,
    fixed: Sequence[Component],
    z_gradients: list[list[tuple[int, Tensor]]],
) -> dict[Component, Tensor]:
    """Return the scores of queries and keys (layer, entry, head), from the gradients on z of every drop."""
    shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        shapes[pair.n_tokens, pair.first_difference].append(index)
    entries = Entries.of(pairs)
    starts = np.cumsum(entries.count) - entries.count
    scores = {
        component: torch.zeros(
            model.dimensions.n_layers,
            int(entries.count.sum()),
            model.dimensions.heads_of(component) or 1,
            device=model.device,
        )
        for component in fixed
    }
    for indices in shapes.values():
        alike = [pairs[index] for index in indices]
        entry = Index(ranges(starts[indices], entries.count[indices]))
        base_rows, other_rows = zip(*(base_and_other(pair, method.direction) for pair in alike), strict=True)
        first = alike[0].first_difference
        edits: list[Edit] = []
        if method.reference is not None:
            # The other prompts are of no interest: what stands in their place does so in the base prompts.
            other_rows, replaced = base_rows, Entries.of(alike)
            places = replaced.pair, replaced.position
            edits = edits_everywhere(model, alike, sites_in_order(model, fixed), method.reference, places)
        base, other = (
            read_attention(model, base_rows, first),
            read_attention(model, other_rows, first, edits),
        )
        for layer, (of_base, of_other, drops) in enumerate(zip(base, other, z_gradients, strict=True)):
            mine = [(count, _by_pair(entry.take(gradient), len(alike))) for count, gradient in drops]
            for component in fixed:
                effects = _query_effects if component is Component.Q else _key_effects
                found = effects(of_base, of_other, mine).transpose(1, 2).flatten(0, 1) / (len(z_gradients) - 1)
                scores[component][layer, entry.on(model.device)] = found.float().to(model.device)
    return scores


def _by_pair(values: Tensor, n_pairs: int) -> Tensor:
    """Return (entry, head, feature) of pairs of one shape as (pair, position, head, feature)."""
    return values.view(n_pairs, -1, *values.shape[1:])


def _gradients(
    passed: Capture, objective: Float[Tensor, ""], sites: dict[Component, Site]
) -> Iterator[tuple[int, dict[SiteKey, Float[Tensor, "..."]], dict[Component, int]]]:
    """Yield a layer, gradients at its sites, and for how many of the drops they are a component's gradients.

    Over all that is yielded, the counts of a component at a layer are the drops in which it has a gradient at all.
    """
    n_layers = len(passed.sites)
    keys = list(passed.sites[0])
    into, out_of = sites[Component.RESID_PRE].key, sites[Component.RESID_POST].key

    # No shapes here: the annotations of an inner function are evaluated on a server too, which has no jaxtyping.
    def backward(output: Tensor, n_lowest: int, gradient: Tensor | None) -> list[dict[SiteKey, Tensor]]:
        wanted = [layer[key] for layer in passed.sites[:n_lowest] for key in keys]
        found = iter(torch.autograd.grad(output, wanted, gradient, retain_graph=True, materialize_grads=True))
        return [{key: next(found) for key in keys} for _ in range(n_lowest)]

    for layer, gradients in enumerate(whole := backward(objective, n_layers, None)):
        # Drops of lower layers change nothing here, and that of the layer itself nothing at its output.
        yield layer, gradients, {c: layer + (c is Component.RESID_POST) for c in sites}
    for dropped in range(n_layers):
        past = whole[dropped][out_of]
        skipped = {sites[c].key: past for c in (Component.RESID_PRE, Component.RESID_MID) if c in sites}
        yield dropped, skipped, {c: int(sites[c].key in skipped) for c in sites}
        if dropped:
            for layer, gradients in enumerate(backward(passed.sites[dropped][into], dropped, past)):
                yield layer, gradients, dict.fromkeys(sites, 1)


def _query_effects(
    base: Attention, other: Attention, z_gradients: list[tuple[int, Float[Tensor, "pair position head d_head"]]]
) -> Float[Tensor, "pair head position"]:
    """Add up |I(q)| over drops, for one layer."""
    scores = base.scores(base.query, base.key) + base.mask
    replaced = base.scores(other.query, base.key) + base.mask
    change = (replaced.softmax(-1) - scores.softmax(-1)) @ base.value
    effects = [count * torch.einsum("pthd,phtd->pht", gradient, change).abs() for count, gradient in z_gradients]
    return torch.stack(effects).sum(0)


def _key_effects(
    base: Attention, other: Attention, z_gradients: list[tuple[int, Float[Tensor, "pair position head d_head"]]]
) -> Float[Tensor, "pair kv_head position"]:
    """Add up |I(k)| over drops, for one layer.

    The softmax is computed again for every key: the closed form divides by 1 - A, which is 0 in saturated attention.
    """
    n_positions, n_cached = base.query.shape[2], base.n_cached
    gradients = torch.stack([gradient for _, gradient in z_gradients])
    counts = on_device(np.array([count for count, _ in z_gradients]), gradients.device)
    scores = base.scores(base.query, base.key) + base.mask
    replaced = base.scores(base.query, other.key) + base.mask
    probabilities = scores.softmax(-1)
    effects = []
    for position in range(n_positions):
        # Earlier positions do not see this key.
        patched = scores[:, :, position:].clone()
        patched[..., n_cached + position] = replaced[:, :, position:, n_cached + position]
        change = (patched.softmax(-1) - probabilities[:, :, position:]) @ base.value
        by_head = torch.einsum("npthd,phtd->nph", gradients[:, :, position:], change)
        by_kv_head = reduce(by_head, "n p (kv_head served) -> n p kv_head", "sum", kv_head=base.n_kv_heads)
        effects.append((counts.view(-1, 1, 1) * by_kv_head.abs()).sum(0))
    return torch.stack(effects, dim=-1)
