"""Both prompts of every pair of a micro-batch, the base prompt's with a graph: what first and second orders start from.

A prompt that occurs in several pairs is computed once. Where it is the base prompt of one pair and the other prompt of
its mirror, it is a row with a graph, which serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.batches import Request, plan_rows, rows_of
from attrib_batch.attribution.contrast import Objective, sites_in_order, subtract, vocabulary_of
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Capture, Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.references import Reference, Replacement, ablated_logits
from attrib_batch.models.families import Dimensions, Site, SiteKey
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component


@dataclass(frozen=True)
class BaseGraph:
    """The prompts of pairs after their forward passes."""

    entries: Entries
    at_base: Index
    """Of each entry the token among those of the pass with a graph."""
    at_other: Index
    """Of each entry the other prompt's token among those of all passes."""
    passed: list[Capture]
    """The pass with a graph, then the one without, if any prompt needs it."""
    base_row: Int[np.ndarray, " pair"]
    """The row of each pair's base prompt in the pass with a graph."""
    other_row: Int[np.ndarray, " pair"]
    """The row of its other prompt; those of the pass without a graph count on."""
    graph_pair: Index
    """Of each row with a graph a pair whose base prompt it is."""
    objective: Objective
    vocabulary: list[int] | None
    reference: Reference | None
    """What stands in place of the other prompts' activations, if anything does; and of each entry what that is."""
    replacement: Replacement | None

    @classmethod
    def of(
        cls,
        passes: Passes,
        pairs: Sequence[EncodedPair],
        method: Method,
        sites: Sequence[Site],
        *,
        twice: bool = False,
        hold: bool = False,
    ) -> BaseGraph:
        """Compute both prompts of pairs.

        Args:
            passes: of the model.
            pairs: pairs of any shapes.
            method: which of their prompts is the base, and the metric.
            sites: what is read.
            twice: let the gradients have gradients.
            hold: hold the keys and values of the base prompts for later passes; these must not be padded.
        """
        rows = plan_rows(pairs, [Request(method.direction, method.metric)])
        row_with = rows_of(pairs)
        layouts = [passes.layout([row_with[tokens] for tokens in of]) for of in (rows.graph, rows.plain) if of]
        vocabulary = vocabulary_of(passes.model, pairs, [method])
        forward = partial(passes.forward, sites=sites, vocabulary=vocabulary)
        plain = [forward(layout, graph=False) for layout in layouts[1:]]
        graph = (
            passes.hold(layouts[0].rows, sites, vocabulary, graph=True)
            if hold
            else forward(layouts[0], graph=True, twice=twice)
        )
        passed = [graph, *plain]
        logits = torch.cat([one.logits.detach() for one in passed])
        base_row, other_row = np.array(rows.base[0]), np.array(rows.other[0])
        entries = Entries.of(pairs)
        base_logits, other_logits = Index(base_row).take(logits), Index(other_row).take(logits)
        replacement = None
        if method.reference is not None:
            replaced = sites_in_order(passes.model, method.components)
            other_logits = ablated_logits(passes, pairs, replaced, method.reference, vocabulary)
            replacement = method.reference.at(pairs, entries)
        return cls(
            entries=entries,
            at_base=entries.index(rows.base[0], layouts[0]),
            at_other=entries.index(rows.other[0], *layouts),
            passed=passed,
            base_row=base_row,
            other_row=other_row,
            graph_pair=Index(np.array([pair for _, pair in rows.graph_of])),
            objective=Objective.of(method, pairs, base_logits, other_logits, vocabulary),
            vocabulary=vocabulary,
            reference=method.reference,
            replacement=replacement,
        )

    def gradients(
        self, sites: Sequence[Site], *, differentiable: bool = False
    ) -> list[dict[SiteKey, Float[Tensor, "..."]]]:
        """Return the gradient of every row's own metric at sites, by layer.

        Args:
            sites: some of those that were read.
            differentiable: let the gradients have gradients, which needs a pass that was told so; the graph is used up
                otherwise.
        """
        graph = self.passed[0]
        # Rows do not interact: the gradient of the sum on a row is that of its own metric.
        total = self.objective(graph.logits, self.graph_pair).sum()
        keys = list(dict.fromkeys(site.key for site in sites))
        wanted = [layer[key] for layer in graph.sites for key in keys]
        found = iter(torch.autograd.grad(total, wanted, create_graph=differentiable))
        return [{key: next(found) for key in keys} for _ in graph.sites]

    def difference(
        self, component: Component, layer: int, site: Site, dimensions: Dimensions
    ) -> Float[Tensor, "entry head feature"]:
        """Return the other prompt's activation, or its replacement, minus the base's: a component's, at its site."""
        with torch.no_grad():
            parts = [one.at(layer, site, dimensions).detach() for one in self.passed]
            base = self.at_base.take(parts[0])
            if self.replacement is not None:
                return subtract(self.replacement.of(component, layer, base), base)
            every = parts[0] if len(parts) == 1 else torch.cat(parts)
            return subtract(self.at_other.take(every), base)
