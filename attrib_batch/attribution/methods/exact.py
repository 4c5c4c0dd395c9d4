"""Activation patching: the effect that the other methods estimate, measured.

Vig et al. 2020 (arXiv 2004.12265), section 3; Meng et al. 2022 (arXiv 2202.05262), section 2; with the conventions of
Zhang, Nanda 2024 (arXiv 2309.16042). One activation at a time, a component of one layer, head and position,

    score(a) = M(base prompt with a_base replaced by a_other) - M(base prompt)

Denoising takes the corrupted prompt as the base and the clean prompt as the other; noising is the mirror.

Every replacement is a row of its own, and rows cost only what a replacement can change. Layers below it are skipped:
the rows of a layer begin with the base prompt's residual stream there. Positions before it come from the base prompt's
keys and values: the rows of a position begin at that position. So at the last position a row is a single token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.batches import base_and_other, rows_of
from attrib_batch.attribution.contrast import Objective, sites_in_order, vocabulary_of
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Capture, Edit, Layout, Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.references import Reference, Replacement, ablated_logits
from attrib_batch.attribution.scores import Scores
from attrib_batch.models.families import Dimensions, Site
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.spec.positions import ALL, positions_asked

_INTO_LAYER = Site("", "input")


def activation_patching(passes: Passes, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int) -> Scores:
    """Score pairs of any shapes, one row of a forward pass per score.

    Only the positions that ``at`` asks for are computed. Rows are computed together as far as ``batch_tokens``
    positions go, those from the replaced one on.
    """
    with torch.no_grad():
        prompts = _Prompts.of(passes, pairs, method)
        entries = _Entries.of(pairs, method.parameters["at"])
        scores = {
            component: torch.zeros(
                passes.model.dimensions.n_layers, len(entries.pair), n_heads, device=passes.model.device
            )
            for component, n_heads in prompts.heads.items()
        }
        for replacements in _parts(pairs, entries, prompts.heads, batch_tokens, padded=passes.padded):
            prompts.measure(passes, replacements, scores)
    return prompts.objective.with_scores(scores, entries.count, entries.asked)


@dataclass(frozen=True)
class _Entries:
    """What is asked for: a position of a pair each, pair after pair."""

    pair: Int[np.ndarray, " entry"]
    position: Int[np.ndarray, " entry"]
    count: Int[np.ndarray, " pair"]
    asked: Int[np.ndarray, " entry"] | None
    """The positions, where they are not all from the first difference on."""

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], at: str | Sequence[str]) -> _Entries:
        """List the positions of every pair that ``at`` means."""
        positions = [
            list(range(pair.first_difference, pair.n_tokens)) if at == ALL else positions_asked(at, pair.roles)
            for pair in pairs
        ]
        count = np.array([len(of_pair) for of_pair in positions], dtype=np.int64)
        position = np.array([position for of_pair in positions for position in of_pair], dtype=np.int64)
        return cls(np.repeat(np.arange(len(pairs)), count), position, count, None if at == ALL else position)


@dataclass(frozen=True)
class _Replacements:
    """Rows of one pass, each with one activation replaced: of which entry, component and head."""

    entry: Int[np.ndarray, " row"]
    pair: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    component: Int[np.ndarray, " row"]
    """By index, in the order of the forward pass."""
    head: Int[np.ndarray, " row"]


def _parts(
    pairs: Sequence[EncodedPair],
    entries: _Entries,
    heads: Mapping[Component, int],
    batch_tokens: int,
    *,
    padded: bool,
) -> Iterator[_Replacements]:
    """Divide all replacements into those that are computed at once."""
    n_tokens = np.array([pair.n_row_tokens for pair in pairs])[entries.pair]
    first = np.array([pair.first_difference for pair in pairs])[entries.pair]
    # Before the first difference both prompts are the same, and a replacement changes nothing.
    changed = np.flatnonzero(entries.position >= first)
    every = np.array([(component, head) for component, n in enumerate(heads.values()) for head in range(n)])
    for alike in _of_one_position(changed, entries.position) if padded else [changed]:
        entry = np.repeat(alike, len(every))
        component, head = np.tile(every, (len(alike), 1)).T
        # Padded rows have a copy of the keys and values before them.
        cost = np.cumsum(n_tokens[entry] if padded else (n_tokens - entries.position)[entry])
        start = 0
        while start < len(entry):
            done = int(cost[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(cost, done + batch_tokens, side="right")))
            rows = slice(start, stop)
            yield _Replacements(
                entry[rows],
                entries.pair[entry[rows]],
                entries.position[entry[rows]],
                component[rows],
                head[rows],
            )
            start = stop


def _of_one_position(entry: Int[np.ndarray, " entry"], position: Int[np.ndarray, " all"]) -> list[np.ndarray]:
    return [entry[position[entry] == one] for one in np.unique(position[entry])]


@dataclass(frozen=True)
class _Prompts:
    """Both prompts of every pair, and base prompts with activations replaced."""

    pairs: Sequence[EncodedPair]
    sites: Mapping[Component, Site]
    heads: Mapping[Component, int]
    dimensions: Dimensions
    vocabulary: list[int] | None
    base: Capture
    """What enters each layer for the base prompts, whose keys and values are held."""
    base_row: Int[np.ndarray, " pair"]
    other: Capture
    """The other prompts' activations."""
    other_row: Int[np.ndarray, " pair"]
    reference: Reference | None
    """What stands in place of the other prompts' activations, if anything does."""
    objective: Objective

    @classmethod
    def of(cls, passes: Passes, pairs: Sequence[EncodedPair], method: Method) -> _Prompts:
        """Compute both prompts of ``pairs``."""
        model, row_with = passes.model, rows_of(pairs)
        sites = sites_in_order(model, method.components)
        vocabulary = vocabulary_of(model, pairs, [method])
        base_rows, other_rows = (
            [row_with[tokens] for tokens in of]
            for of in zip(*(base_and_other(pair, method.direction) for pair in pairs), strict=True)
        )
        # Where something else stands in place of the other prompts, they are the base prompts, of which none is read.
        read = list(sites.values()) if method.reference is None else []
        other = passes.forward(passes.layout(list(dict.fromkeys(other_rows))), read, graph=False, vocabulary=vocabulary)
        distinct = list(dict.fromkeys(base_rows))
        base = passes.hold(distinct, [_INTO_LAYER], vocabulary)
        base_row, other_row = (
            np.array([{row.tokens: i for i, row in enumerate(among)}[row.tokens] for row in of])
            for among, of in ((distinct, base_rows), (other.layout.rows, other_rows))
        )
        base_logits, other_logits = Index(base_row).take(base.logits), Index(other_row).take(other.logits)
        if method.reference is not None:
            other_logits = ablated_logits(passes, pairs, sites, method.reference, vocabulary)
        return cls(
            pairs=pairs,
            sites=sites,
            heads={component: model.dimensions.heads_of(component) or 1 for component in sites},
            dimensions=model.dimensions,
            vocabulary=vocabulary,
            base=base,
            base_row=base_row,
            other=other,
            other_row=other_row,
            reference=method.reference,
            objective=Objective.of(method, pairs, base_logits, other_logits, vocabulary),
        )

    def measure(
        self, passes: Passes, rows: _Replacements, scores: Mapping[Component, Float[Tensor, "layer entry head"]]
    ) -> None:
        """Write the effects of replacements at every layer into ``scores``."""
        pair = Index(rows.pair)
        layout = passes.layout(
            [
                replace(self.base.layout.rows[self.base_row[index]], first=position)
                for index, position in zip(rows.pair.tolist(), rows.position.tolist(), strict=True)
            ]
        )
        source = Index(self._source(layout, rows))
        before = pair.take(self.objective.base)
        replaced = [
            (component, site, mine, self._places(rows, mine, layout))
            for number, (component, site) in enumerate(self.sites.items())
            if len(mine := np.flatnonzero(rows.component == number))
        ]
        dimensions = self.dimensions
        for layer in range(dimensions.n_layers):
            edits = [self._edit(component, site, places, layer) for component, site, _, places in replaced]
            passed = passes.forward(
                layout,
                [],
                graph=False,
                # A copy: what is replaced is replaced in place.
                start=source.take(self.base.at(layer, _INTO_LAYER, dimensions).squeeze(1)).clone(),
                first_layer=layer,
                edits=edits,
                vocabulary=self.vocabulary,
            )
            effect = self.objective(passed.logits, pair) - before
            for component, _, mine, places in replaced:
                of_layer = scores[component][layer]
                device = of_layer.device
                of_layer[places.entry.on(device), places.head.on(device)] = Index(mine).take(effect).float().to(device)

    def _places(self, rows: _Replacements, mine: Int[np.ndarray, " edit"], layout: Layout) -> _Places:
        """Find the places of the replacements ``mine``, and what stands there afterwards."""
        row, position = np.divmod(layout.origin[mine] + rows.position[mine], layout.shape[1])
        value = self.other.layout.origin[self.other_row[rows.pair[mine]]] + rows.position[mine]
        replacement = None
        if self.reference is not None:
            replacement = self.reference.at_places(self.pairs, rows.pair[mine], rows.position[mine])
        head, entry = rows.head[mine], rows.entry[mine]
        return _Places(Index(row), Index(position), Index(head), Index(value), Index(entry), replacement)

    def _edit(self, component: Component, site: Site, places: _Places, layer: int) -> Edit:
        """Return the replacements at a layer."""
        if places.replacement is not None:
            value = places.replacement.of_heads(component, layer, places.head.places, self.base.logits.device)
        else:
            values = self.other.at(layer, site, self.dimensions)
            value = values[places.value.on(values.device), places.head.on(values.device)]
        return Edit(site, places.row, places.position, places.head, value)

    def _source(self, layout: Layout, rows: _Replacements) -> Int[np.ndarray, " token"]:
        """Return for each token of a pass the place of the same token of the base prompts; padding has any."""
        count = np.array([pair.n_row_tokens for pair in self.pairs])[rows.pair] - rows.position
        source = np.zeros(layout.n_tokens, dtype=np.int64)
        to = layout.places(np.arange(len(rows.pair)), rows.position, count)
        source[to] = self.base.layout.places(self.base_row[rows.pair], rows.position, count)
        return source


@dataclass(frozen=True)
class _Places:
    """Where the activations of one component are replaced in a pass, by what, and whose scores that gives."""

    row: Index
    position: Index
    head: Index
    value: Index
    """Among the tokens of the other prompts."""
    entry: Index
    replacement: Replacement | None
    """What stands in place of the other prompts' activations, if anything does."""
