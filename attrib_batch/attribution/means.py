"""Mean activations over a dataset's clean prompts, for `attrib_batch.attribution.references`.

What is computed here are sums over the tokens of a micro-batch for each component, layer, head and role; the tokens
without a role are one more, and a prepended BOS is among them. They are added up in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.batches import rows_of
from attrib_batch.attribution.contrast import sites_in_order
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.scores import ActivationSums, BatchScores
from attrib_batch.pairs.encoding.encode import EncodedPair


def mean_activations(
    passes: Passes,
    pairs: Sequence[EncodedPair],
    methods: Sequence[Method],
    *,
    batch_tokens: int,  # noqa: ARG001 - a SharedScoringFunction; what it computes for the pairs fits by their choice
) -> list[BatchScores]:
    """Add up activations of clean prompts; every method is one component.

    Returns:
        For each method the sums over the pairs whose activations are finite in all components. These have a score of 0,
        and all others NaN, by which they are known.
    """
    dimensions, entries, row_with = passes.model.dimensions, Entries.of(pairs), rows_of(pairs)
    layout = passes.layout([row_with[pair.clean] for pair in pairs])
    sites = sites_in_order(passes.model, [method.components[0] for method in methods])
    at = entries.index(range(len(pairs)), layout)
    layers = range(dimensions.n_layers)
    with torch.no_grad():
        entering = at.take(passes.start(layout))
        passed = passes.forward(layout, list(sites.values()), graph=False)
        finite = entering.isfinite().all(-1).cpu().numpy()
        for site in sites.values():
            for layer in layers:
                finite &= at.take(passed.at(layer, site, dimensions)).isfinite().flatten(1).all(-1).cpu().numpy()
        of_pair = np.logical_and.reduceat(finite, np.cumsum(entries.count) - entries.count)
        kept = np.flatnonzero(of_pair[entries.pair])
        names = [role for pair in pairs for role in pair.roles[pair.first_difference :]]
        roles = tuple(sorted(set(names), key=lambda role: (role is not None, role or "")))
        code = {role: index for index, role in enumerate(roles)}
        role = np.array([code[name] for name in names], dtype=np.int64)[kept]
        places = Index(at.places[kept])
        scores = np.where(of_pair, 0.0, np.nan).astype(np.float32)[:, None, None, None]
        results = []
        for method in methods:
            (component,) = method.components
            totals = [_sum(places.take(passed.at(n, sites[component], dimensions)), role, len(roles)) for n in layers]
            sums = ActivationSums(
                roles,
                np.bincount(role, minlength=len(roles)),
                np.stack(totals),
                _sum(Index(kept).take(entering), role, len(roles)),
            )
            nothing = np.zeros(len(pairs))
            results.append(BatchScores({component: scores}, nothing, nothing, sums=sums))
    return results


def _sum(values: Float[Tensor, "entry *feature"], role: np.ndarray, n_roles: int) -> Float[np.ndarray, "role *feature"]:
    """Add up entries by role."""
    total = torch.zeros(n_roles, *values.shape[1:], dtype=torch.float64, device=values.device)
    total.index_add_(0, Index(role).on(values.device), values.double())
    found: np.ndarray = total.cpu().numpy()
    return found
