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

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from attrib_batch.attribution.batches import base_and_other
from attrib_batch.attribution.contrast import Objective, rows_at, sites_in_order
from attrib_batch.attribution.forward import last_logits
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.models.activations import activation_at, put_back, replace_heads, skip_layer
from attrib_batch.models.families import Site, SiteKey
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.spec.positions import ALL, positions_asked

_INTO_LAYER = Site("", "input")


def activation_patching(
    model: LoadedModel, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int
) -> BatchScores:
    """Score pairs of one shape (equal length, equal first difference), one row of a forward pass per score.

    Only the positions that ``at`` asks for are computed. Rows are computed together as far as ``batch_tokens``
    positions go, those before the replaced one counted: every row has its copy of their keys and values.
    """
    size = max(1, batch_tokens // (2 * pairs[0].n_tokens))
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    with torch.no_grad():
        return BatchScores.joined([_score(model, part, method, batch_tokens) for part in parts])


def _score(model: LoadedModel, pairs: Sequence[EncodedPair], method: Method, batch_tokens: int) -> BatchScores:
    sites = sites_in_order(model, method.components)
    prompts = _Prompts.of(model, pairs, method, sites)
    places = _Places.of(pairs, method.parameters["at"])
    heads = {component: model.dimensions.heads_of(component) or 1 for component in sites}
    base = prompts.objective.base
    scores = {
        component: base.new_zeros(model.dimensions.n_layers, len(pairs), n_heads, places.width)
        for component, n_heads in heads.items()
    }
    every = [(component, head) for component, n_heads in heads.items() for head in range(n_heads)]
    for position in range(pairs[0].first_difference, pairs[0].n_tokens):
        asked = places.pairs_at(position)
        if not len(asked):
            continue
        combinations = torch.cartesian_prod(torch.arange(len(every)), asked)
        for rows in torch.split(combinations, max(1, batch_tokens // pairs[0].n_tokens)):
            pair = rows[:, 1]
            before = prompts.before(position, pair)
            patches = []
            for component in sites:
                mine = [i for i, index in enumerate(rows[:, 0].tolist()) if every[index][0] is component]
                if mine:
                    at = torch.tensor(mine)
                    head = torch.tensor([every[index][1] for index in rows[at, 0].tolist()])
                    patches.append(_Patch(component, at, pair[at], head))
            for layer in range(model.dimensions.n_layers):
                logits = prompts.patched(layer, position, pair, before, patches)
                effect = prompts.objective(logits, pair) - rows_at(base, pair)
                for patch in patches:
                    place = places.of_position[patch.pair, position]
                    scores[patch.component][layer, patch.pair, patch.head, place] = rows_at(effect, patch.row)
    return prompts.objective.with_scores(scores, places.positions)


@dataclass(frozen=True)
class _Places:
    """Where the scores of a position stand along the last axis: pairs may be asked for at different positions."""

    of_position: Int[Tensor, "pair token"]
    """-1 where a pair is not asked for at a position."""
    width: int
    positions: Int[Tensor, "pair place"] | None
    """As in `BatchScores`."""

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], at: str | Sequence[str]) -> _Places:
        """Place the positions of every pair that ``at`` means."""
        n_tokens, first = pairs[0].n_tokens, pairs[0].first_difference
        if at == ALL:
            every = torch.arange(n_tokens) - first
            return cls(every.clamp(min=-1).expand(len(pairs), n_tokens), n_tokens - first, None)
        asked = [positions_asked(at, pair.roles) for pair in pairs]
        width = max(map(len, asked))
        of_position = torch.full((len(pairs), n_tokens), -1)
        positions = torch.full((len(pairs), width), -1)
        for index, mine in enumerate(asked):
            of_position[index, mine] = torch.arange(len(mine))
            positions[index, : len(mine)] = torch.tensor(mine, dtype=torch.long)
        return cls(of_position, width, positions)

    def pairs_at(self, position: int) -> Int[Tensor, " asked"]:
        """Return the pairs that are asked for at a position, by index."""
        return (self.of_position[:, position] >= 0).nonzero().flatten()


@dataclass(frozen=True)
class _Patch:
    """The rows of a batch in which one component is replaced: which rows, of which pairs, at which heads."""

    component: Component
    row: Int[Tensor, " patch"]
    pair: Int[Tensor, " patch"]
    head: Int[Tensor, " patch"]


@dataclass(frozen=True)
class _Prompts:
    """Both prompts of every pair over all positions, and base prompts with activations replaced."""

    model: LoadedModel
    sites: dict[Component, Site]
    base_rows: Int[Tensor, "pair position"]
    keys: list[tuple[Float[Tensor, "pair kv_head position d_head"], Float[Tensor, "pair kv_head position d_head"]]]
    """The base prompt's keys and values of every layer."""
    residual: list[Float[Tensor, "pair position d_model"]]
    """What enters each layer for the base prompt."""
    other: list[dict[Component, Float[Tensor, "pair position head feature"]]]
    """The other prompt's activations."""
    objective: Objective

    @classmethod
    def of(
        cls, model: LoadedModel, pairs: Sequence[EncodedPair], method: Method, sites: dict[Component, Site]
    ) -> _Prompts:
        """Compute both prompts of ``pairs``."""
        base_rows, other_rows = (
            torch.tensor(rows, device=model.device)
            for rows in zip(*(base_and_other(pair, method.direction) for pair in pairs), strict=True)
        )
        base_seen, base_logits, cache = _compute_whole(model, base_rows, [_INTO_LAYER])
        other_seen, other_logits, _ = _compute_whole(model, other_rows, list(sites.values()))
        return cls(
            model=model,
            sites=sites,
            base_rows=base_rows,
            keys=[(layer.keys, layer.values) for layer in cache.layers],
            residual=[layer[_INTO_LAYER.key] for layer in base_seen],
            other=[
                {component: site.view(layer[site.key], model.dimensions) for component, site in sites.items()}
                for layer in other_seen
            ],
            objective=Objective.of(method, pairs, base_logits, other_logits),
        )

    def patched(
        self,
        layer: int,
        position: int,
        pair: Int[Tensor, " row"],
        before: DynamicCache | None,
        patches: Sequence[_Patch],
    ) -> Float[Tensor, "row vocab"]:
        """Return the logits of the base prompts at ``pair``, each with one activation at (layer, position) replaced."""
        layers = self.model.traced.get(self.model.architecture.layers)
        cache = copy.copy(before)
        if cache is not None:
            # Layers grow by rebinding, so the tensors themselves serve every pass.
            cache.layers = [copy.copy(of_layer) for of_layer in cache.layers]
        residual = rows_at(self.residual[layer][:, position:], pair)
        ids = rows_at(self.base_rows[:, position:], pair)
        sites = {site.key: site for site in (self.sites[patch.component] for patch in patches)}
        with self.model.traced.trace(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
        ):
            for below in layers[:layer]:
                skip_layer(self.model, below, residual)
            for key, site in sites.items():
                activation = activation_at(self.model, layers[layer], site)
                for patch in patches:
                    if self.sites[patch.component].key == key:
                        # In place: where the activation is also the skip connection's, both paths must take the patch.
                        self._replace(activation, layer, position, patch)
                put_back(self.model, layers[layer], site, activation)
            logits: Tensor = last_logits(self.model)
        return logits

    def _replace(self, activation: Float[Tensor, "row ..."], layer: int, position: int, patch: _Patch) -> None:
        value = self.other[layer][patch.component]
        row, pair, head = (index.to(activation.device) for index in (patch.row, patch.pair, patch.head))
        replace_heads(self.model, self.sites[patch.component], activation, (row, head), value[pair, position, head])

    def before(self, position: int, pair: Int[Tensor, " row"]) -> DynamicCache | None:
        """Return the keys and values before ``position`` of the base prompts of the pairs at ``pair``."""
        from transformers import DynamicCache

        if position == 0:
            return None
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.keys):
            cache.update(rows_at(keys[:, :, :position], pair), rows_at(values[:, :, :position], pair), layer)
        return cache


def _compute_whole(
    model: LoadedModel, ids: Int[Tensor, "row position"], sites: Sequence[Site]
) -> tuple[list[dict[SiteKey, Float[Tensor, "row ..."]]], Float[Tensor, "row vocab"], Any]:
    """Compute whole prompts: the tensors at ``sites`` of every layer, the last position's logits, and the cache."""
    from transformers import DynamicCache

    # Without the configuration, layers with a sliding window keep all their keys too; their mask hides the old ones.
    cache = DynamicCache()
    by_key = {site.key: site for site in sites}
    seen: list[dict[SiteKey, Tensor]] = []
    with model.traced.trace(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1):
        layers = model.traced.get(model.architecture.layers)
        seen.extend({key: activation_at(model, layer, site) for key, site in by_key.items()} for layer in layers)
        logits = last_logits(model)
    return seen, logits, cache
