"""Attribution patching with a second-order correction, by a Hessian-vector product.

Zhang, Wang 2026 (arXiv 2606.09899). What patching one activation a does, to second order, with d = a_other - a_base
and all derivatives on the base prompt:

    M(a_base + d) - M(a_base)  =  g . d  +  d . H d / 2  +  ...

where g is the gradient of the metric on that activation and H its Hessian on it alone, through everything downstream.
``atp`` is the first term. |d . H d| / (2 |g . d|), the second term over the first, is how unreliable ``atp`` is there.

A node here is a component of one layer, head and position. d . H d of one node alone is a Hessian-vector product of its
own, dearer than to patch it. One product with a direction v made of the differences of many nodes costs one more
backward pass through the gradients, and gives at each node n, beside d_n . H_nn d_n, what the others there add:

    v_n . (H v)_n  =  d_n . H_nn d_n  +  sum over m of s_n s_m d_n . H_nm d_m        with v_n = s_n d_n

With all s = 1, the joint direction, the cross terms remain whatever is done. So each node has a sign s of its own,
drawn anew for every one of ``probes`` products: the cross terms then average to 0 (Hutchinson's estimator, taken block
by block) and what is left of them falls with the square root of ``probes``. Signs follow from both prompts and the node
alone, so a score depends on no batch. Every component has directions of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, UInt
from torch import Tensor

from attrib_batch.attribution.base_graph import BaseGraph
from attrib_batch.attribution.contrast import sites_in_order
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.passes.base import by_token
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.attribution.scores import Scores
from attrib_batch.models.devices import on_device
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component


def second_order_patching(
    passes: Passes,
    pairs: Sequence[EncodedPair],
    method: Method,
    *,
    batch_tokens: int,  # noqa: ARG001 - a ScoringFunction; what it computes for the pairs fits by their choice
) -> Scores:
    """Score pairs of any shapes: the first order plus half of the second."""
    model, dimensions = passes.model, passes.model.dimensions
    sites = sites_in_order(model, method.components)
    base = BaseGraph.of(passes, pairs, method, list(sites.values()), twice=True)
    slopes = base.gradients(list(sites.values()), differentiable=True)
    signs = Signs.of(pairs, base.entries)
    scores = {}
    for component, site in sites.items():
        node = _Nodes(
            at=base.at_base,
            activations=[layer[site.key] for layer in base.passed[0].sites],
            slopes=[layer[site.key] for layer in slopes],
            differences=[base.difference(component, layer, site, dimensions) for layer in range(dimensions.n_layers)],
            view=partial(by_token, site=site, dimensions=dimensions),
        )
        n_heads = dimensions.heads_of(component) or 1
        second = [
            node.second_order(
                [signs.at_layer(probe, component, layer, n_heads) for layer in range(dimensions.n_layers)]
            )
            for probe in range(int(method.parameters["probes"]))
        ]
        total = node.first_order() + torch.stack(second).mean(0) / 2
        scores[component] = total.to(model.device)
    return base.objective.with_scores(scores, base.entries.count)


@dataclass(frozen=True)
class _Nodes:
    """One component at every layer, with the graph of its gradients."""

    at: Index
    """Of each entry the token."""
    activations: Sequence[Tensor]
    slopes: Sequence[Tensor]
    differences: Sequence[Float[Tensor, "entry head feature"]]
    view: Callable[[Tensor], Float[Tensor, "token head feature"]]

    def first_order(self) -> Float[Tensor, "layer entry head"]:
        """Return g . d of every node."""
        with torch.no_grad():
            return self._along(self.slopes, self.differences)

    def second_order(self, signs: Sequence[Float[np.ndarray, "entry head"]]) -> Float[Tensor, "layer entry head"]:
        """Return v . H v of every node, for one direction v."""
        directions = [
            on_device(sign, difference.device).unsqueeze(-1) * difference
            for sign, difference in zip(signs, self.differences, strict=True)
        ]
        along = torch.zeros(())
        for slope, direction in zip(self.slopes, directions, strict=True):
            viewed = at_least_float32(self.view(slope))
            # Each token once, though several pairs may have it: they have the same direction there.
            of_token = torch.zeros_like(viewed.detach())
            of_token[self.at.on(of_token.device)] = direction.to(of_token)
            along = along.to(viewed.device) + (viewed * of_token).sum()
        if not along.requires_grad:  # gradients that are the same everywhere
            products: Sequence[Tensor] = [torch.zeros_like(activation) for activation in self.activations]
        else:
            products = torch.autograd.grad(along, self.activations, retain_graph=True, materialize_grads=True)
        with torch.no_grad():
            return self._along(products, directions)

    def _along(
        self, gradients: Sequence[Tensor], directions: Sequence[Float[Tensor, "entry head feature"]]
    ) -> Float[Tensor, "layer entry head"]:
        device = directions[0].device
        return torch.stack(
            [
                (at_least_float32(self.at.take(self.view(gradient))) * direction).sum(-1).to(device)
                for gradient, direction in zip(gradients, directions, strict=True)
            ]
        )


_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15)
"""The constants of SplitMix64 (Steele, Lea, Flood 2014)."""


@dataclass(frozen=True)
class Signs:
    """A sign for every node and probe, which follows from both prompts of a pair, the node and the probe alone."""

    entry: UInt[np.ndarray, " entry"]
    """A number made of an entry's prompts and position."""

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], entries: Entries) -> Signs:
        """Take the prompts and positions of ``entries``."""
        prompts = [crc32(np.array([*pair.clean, *pair.corrupted], dtype=np.int64).tobytes()) for pair in pairs]
        position = ranges(entries.first, entries.count)
        return cls(_mixed(np.array(prompts, dtype=np.uint64)[entries.pair], position))

    def at_layer(self, probe: int, component: Component, layer: int, n_heads: int) -> Float[np.ndarray, "entry head"]:
        """Return 1 or -1 for every entry and head."""
        found = self.entry
        for number in (probe, list(Component).index(component), layer):
            found = _mixed(found, np.array(number))
        bits = _mixed(found[:, None], np.arange(n_heads)[None]) >> np.uint64(63)
        signs: np.ndarray = 1 - 2 * bits.astype(np.float32)
        return signs


def _mixed(state: np.ndarray, with_: np.ndarray) -> np.ndarray:
    """Mix numbers into others so that every bit depends on all of both."""
    first, second, step = (np.uint64(constant) for constant in _MIX)
    with np.errstate(over="ignore"):
        mixed = state + step * (with_.astype(np.uint64) + np.uint64(1))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * first
        mixed = (mixed ^ (mixed >> np.uint64(27))) * second
        found: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return found
