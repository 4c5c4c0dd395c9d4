"""Activations replaced one at a time, and what each replacement does to the metric.

    effect(node) = M(base prompt with a_base replaced by a_other at the node) - M(base prompt)

A *node* is an activation of a component at one layer, head and position of a pair. Every replacement is a row of its
own, and rows cost only what a replacement can change. Layers below it are skipped: rows begin with the base prompt's
residual stream there. Positions before it come from the base prompt's keys and values: rows begin at the node's
position. So at the last position a row is a single token.

Rows of several layers go through the model together where that is cheaper than a pass for each: they begin at the
lowest of these layers, and until its own layer a row computes what the base prompt has there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.base_graph import BaseGraph
from attrib_batch.attribution.batches import base_and_other, rows_of
from attrib_batch.attribution.contrast import Objective, sites_in_order, vocabulary_of
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Capture, Edit, Layout, Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.references import Reference, ablated_logits
from attrib_batch.models.families import Dimensions, Site
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component

INTO_LAYER = Site("", "input")
"""What enters a layer: the residual stream that rows begin with."""
PASS_TOKENS = 64
"""What a pass costs at every layer whatever it computes, in positions."""


@dataclass(frozen=True)
class Nodes:
    """Activations to be replaced, one at a time."""

    pair: Int[np.ndarray, " node"]
    """By index."""
    position: Int[np.ndarray, " node"]
    """In its prompt."""
    component: Int[np.ndarray, " node"]
    """By index, in the order of the forward pass."""
    layer: Int[np.ndarray, " node"]
    head: Int[np.ndarray, " node"]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.pair)

    def at(self, index: Int[np.ndarray, " some"]) -> Nodes:
        """Return those at these indices."""
        return Nodes(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Nodes]) -> Nodes:
        """Return those of all parts."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class Patcher:
    """Both prompts of pairs: base prompts whose keys and values are held, and what other prompts have instead."""

    pairs: Sequence[EncodedPair]
    n_tokens: Int[np.ndarray, " pair"]
    """How many tokens the rows of each pair have, were they computed from the first on."""
    sites: dict[Component, Site]
    """In the order of the forward pass."""
    base: Capture
    """What enters each layer for the base prompts."""
    base_row: Int[np.ndarray, " pair"]
    other: list[Capture]
    """The other prompts' activations."""
    other_row: Int[np.ndarray, " pair"]
    """Rows of later passes count on."""
    objective: Objective
    vocabulary: list[int] | None
    reference: Reference | None = None
    """What stands in place of the other prompts' activations, if anything does."""

    @classmethod
    def of(cls, passes: Passes, pairs: Sequence[EncodedPair], method: Method) -> Patcher:
        """Compute both prompts of ``pairs`` without a graph."""
        model, row_with = passes.model, rows_of(pairs)
        sites = sites_in_order(model, method.components)
        vocabulary = vocabulary_of(model, pairs, [method])
        base_rows, other_rows = (
            [row_with[tokens] for tokens in of]
            for of in zip(*(base_and_other(pair, method.direction) for pair in pairs), strict=True)
        )
        # Where something else stands in place of the other prompts, they are the base prompts, of which none is read.
        read = list(sites.values()) if method.reference is None else []
        with torch.no_grad():
            other = passes.forward(
                passes.layout(list(dict.fromkeys(other_rows))), read, graph=False, vocabulary=vocabulary
            )
            base = passes.hold(list(dict.fromkeys(base_rows)), [INTO_LAYER], vocabulary)
        base_row, other_row = (
            np.array([{row.tokens: i for i, row in enumerate(of.layout.rows)}[row.tokens] for row in rows])
            for of, rows in ((base, base_rows), (other, other_rows))
        )
        base_logits, other_logits = Index(base_row).take(base.logits), Index(other_row).take(other.logits)
        if method.reference is not None:
            other_logits = ablated_logits(passes, pairs, sites, method.reference, vocabulary)
        objective = Objective.of(method, pairs, base_logits, other_logits, vocabulary)
        return cls(
            pairs=pairs,
            n_tokens=_row_tokens(pairs),
            sites=sites,
            base=base,
            base_row=base_row,
            other=[other],
            other_row=other_row,
            objective=objective,
            vocabulary=vocabulary,
            reference=method.reference,
        )

    @classmethod
    def of_graph(cls, graph: BaseGraph, pairs: Sequence[EncodedPair], sites: dict[Component, Site]) -> Patcher:
        """Take prompts that were computed with a graph, which is let go, and whose keys and values were held."""
        passed = [
            Capture(
                one.layout,
                [{key: values.detach() for key, values in layer.items()} for layer in one.sites],
                one.logits.detach(),
            )
            for one in graph.passed
        ]
        return cls(
            pairs,
            _row_tokens(pairs),
            sites,
            passed[0],
            graph.base_row,
            passed,
            graph.other_row,
            graph.objective,
            graph.vocabulary,
            graph.reference,
        )

    @property
    def n_bytes(self) -> int:
        """How much memory it takes, about: the keys and values that are held are no more than what was read."""
        storages = {
            values.untyped_storage().data_ptr(): values.untyped_storage().nbytes()
            for one in (self.base, *self.other)
            for layer in one.sites
            for values in layer.values()
        }
        return 2 * sum(storages.values())

    def effects(self, passes: Passes, nodes: Nodes, *, batch_tokens: int) -> Float[Tensor, " node"]:
        """Return the effect of every replacement, computed together as far as ``batch_tokens`` positions go."""
        found = torch.zeros(len(nodes), dtype=self.objective.base.dtype, device=self.objective.base.device)
        with torch.no_grad():
            for part in self._parts(nodes, passes, batch_tokens):
                found[Index(part).on(found.device)] = self._measure(passes, nodes.at(part))
        return found

    def _parts(self, nodes: Nodes, passes: Passes, batch_tokens: int) -> Iterator[Int[np.ndarray, " part"]]:
        """Divide nodes, by index, into those of one pass."""
        n_layers = passes.model.dimensions.n_layers
        cost = self.n_tokens[nodes.pair] - nodes.position
        # Padded rows begin at one position, and have a copy of the keys and values before it.
        if passes.padded:
            alike = [np.flatnonzero(nodes.position == one) for one in np.unique(nodes.position)]
            cost = self.n_tokens[nodes.pair]
        else:
            alike = [np.arange(len(nodes))]
        for together in alike:
            for band in _bands(together, nodes.layer, cost, n_layers):
                ends = np.cumsum(cost[band])
                start = 0
                while start < len(band):
                    done = int(ends[start - 1]) if start else 0
                    stop = max(start + 1, int(np.searchsorted(ends, done + batch_tokens, side="right")))
                    yield band[start:stop]
                    start = stop

    def _measure(self, passes: Passes, nodes: Nodes) -> Float[Tensor, " node"]:
        """Compute the rows of one pass."""
        dimensions = passes.model.dimensions
        first_layer = int(nodes.layer.min())
        base_rows = self.base.layout.rows
        layout = passes.layout(
            [
                replace(base_rows[row], first=position)
                for row, position in zip(self.base_row[nodes.pair].tolist(), nodes.position.tolist(), strict=True)
            ]
        )
        source = Index(self._source(layout, nodes))
        passed = passes.forward(
            layout,
            [],
            graph=False,
            # A copy: what is replaced is replaced in place.
            start=source.take(self.base.at(first_layer, INTO_LAYER, dimensions).squeeze(1)).clone(),
            first_layer=first_layer,
            edits=list(self._edits(layout, nodes, dimensions)),
            vocabulary=self.vocabulary,
        )
        pair = Index(nodes.pair)
        return self.objective(passed.logits, pair) - pair.take(self.objective.base)

    def _source(self, layout: Layout, nodes: Nodes) -> Int[np.ndarray, " token"]:
        """Return for each token of a pass the place of the same token of the base prompts; padding has any."""
        count = self.n_tokens[nodes.pair] - nodes.position
        source = np.zeros(layout.n_tokens, dtype=np.int64)
        to = layout.places(np.arange(len(nodes)), nodes.position, count)
        source[to] = self.base.layout.places(self.base_row[nodes.pair], nodes.position, count)
        return source

    def _edits(self, layout: Layout, nodes: Nodes, dimensions: Dimensions) -> Iterator[Edit]:
        """Yield the replacements in the order of the forward pass."""
        rows_before = np.cumsum([0, *(len(one.layout.rows) for one in self.other)])
        which = np.searchsorted(rows_before, self.other_row, side="right") - 1
        for layer in np.unique(nodes.layer).tolist():
            for number, (component, site) in enumerate(self.sites.items()):
                for source, other in enumerate(self.other):
                    mine = np.flatnonzero(
                        (nodes.layer == layer) & (nodes.component == number) & (which[nodes.pair] == source)
                    )
                    if not len(mine):
                        continue
                    row, position = np.divmod(layout.origin[mine] + nodes.position[mine], layout.shape[1])
                    head = Index(nodes.head[mine])
                    if self.reference is not None:
                        stands = self.reference.at_places(self.pairs, nodes.pair[mine], nodes.position[mine])
                        value = stands.of_heads(component, layer, head.places, self.base.logits.device)
                    else:
                        from_row = self.other_row[nodes.pair[mine]] - rows_before[source]
                        values = other.at(layer, site, dimensions)
                        place = Index(other.layout.origin[from_row] + nodes.position[mine])
                        value = values[place.on(values.device), head.on(values.device)]
                    yield Edit(site, layer, Index(row), Index(position), head, value)


def _row_tokens(pairs: Sequence[EncodedPair]) -> Int[np.ndarray, " pair"]:
    return np.array([pair.n_row_tokens for pair in pairs], dtype=np.int64)


def _bands(
    index: Int[np.ndarray, " some"],
    layer: Int[np.ndarray, " node"],
    cost: Int[np.ndarray, " node"],
    n_layers: int,
) -> Iterator[Int[np.ndarray, " band"]]:
    """Divide nodes into those whose rows go through the model together, in order of their layers.

    A layer's rows join those of lower ones as long as the layers that they compute in vain cost less than another pass.
    """
    layers = np.unique(layer[index]).tolist()
    band: list[np.ndarray] = []
    begins = 0
    for number in layers:
        mine = index[layer[index] == number]
        wasted = int(cost[mine].sum()) * (number - begins)
        if band and wasted > PASS_TOKENS * (n_layers - number):
            yield np.concatenate(band)
            band = []
        if not band:
            begins = number
        band.append(mine)
    if band:
        yield np.concatenate(band)
