"""What activations are replaced by where that is not the corrupted prompt's: nothing at all, or their mean.

Zero ablation and mean ablation patch the clean prompt: it is the base, as in noising, and every position of it is
scored. The mean is one over a dataset's clean prompts for each component, layer, head and role, the tokens without a
role being one more; see `attrib_batch.attribution.means`. In place of the corrupted prompt's metric stands that of the
clean prompt with everything replaced at once: all the method's components, at every layer and position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.batches import base_and_other, rows_of
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.passes import Edit, Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.models.families import Site
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component


@dataclass(frozen=True)
class Means:
    """Mean activations over a dataset's clean prompts."""

    roles: tuple[str | None, ...]
    """None is that of all tokens without a role."""
    values: Mapping[Component, Float[np.ndarray, "layer role head feature"]] = field(repr=False)
    """One head where a component has none."""
    entering: Float[np.ndarray, "role d_model"] = field(repr=False)
    """What enters the first layer."""


@dataclass(frozen=True)
class Reference:
    """What a method replaces activations by."""

    means: Means | None = None
    """None: zeros."""

    def at(self, pairs: Sequence[EncodedPair], entries: Entries) -> Replacement:
        """Return what stands at the entries of pairs."""
        return self.at_places(pairs, entries.pair, entries.position)

    def at_places(
        self, pairs: Sequence[EncodedPair], pair: Int[np.ndarray, " entry"], position: Int[np.ndarray, " entry"]
    ) -> Replacement:
        """Return what stands at positions of pairs, each given by its index.

        Raises:
            ValueError: a role has no mean.
        """
        if self.means is None:
            return Replacement(None, Index(np.zeros(len(pair), dtype=np.int64)))
        code = {role: index for index, role in enumerate(self.means.roles)}
        found = [pairs[one].roles[at] for one, at in zip(pair.tolist(), position.tolist(), strict=True)]
        if unknown := [role for role in found if role not in code]:
            raise ValueError(f"there is no mean activation of role {unknown[0]!r}")
        return Replacement(self.means, Index(np.array([code[role] for role in found], dtype=np.int64)))


@dataclass(frozen=True)
class Replacement:
    """What stands in place of activations, one entry after the other."""

    means: Means | None
    role: Index
    """For each entry, among the roles of the means."""

    def of(
        self, component: Component, layer: int, like: Float[Tensor, "entry head feature"]
    ) -> Float[Tensor, "entry head feature"]:
        """Return what stands in place of a component at a layer."""
        if self.means is None:
            return torch.zeros_like(like)
        return self.role.take(torch.from_numpy(self.means.values[component][layer]).to(like.device))

    def of_heads(
        self, component: Component, layer: int, head: Int[np.ndarray, " entry"], device: torch.device
    ) -> Float[Tensor, "entry feature"]:
        """Return what stands in place of one head of each entry; zeros come as one feature, for all."""
        if self.means is None:
            return torch.zeros(len(head), 1, device=device)
        values = torch.from_numpy(self.means.values[component][layer][self.role.places, head])
        return values.to(device)

    def entering(self, like: Float[Tensor, "entry d_model"]) -> Float[Tensor, "entry d_model"]:
        """Return what stands in place of what enters the first layer."""
        if self.means is None:
            return torch.zeros_like(like)
        return self.role.take(torch.from_numpy(self.means.entering).to(like))


def ablated_logits(
    passes: Passes,
    pairs: Sequence[EncodedPair],
    sites: Mapping[Component, Site],
    reference: Reference,
    vocabulary: Sequence[int] | None,
) -> Float[Tensor, "pair *place vocab"]:
    """Compute the clean prompts with every component of ``sites`` replaced, at every layer and position."""
    entries, row_with = Entries.of(pairs), rows_of(pairs)
    # A row for every pair: another pair with the same prompt may have other roles.
    layout = passes.layout([row_with[base_and_other(pair, "noise")[0]] for pair in pairs])
    places = layout.places(np.arange(len(pairs)), entries.first, entries.count)
    edits = edits_everywhere(passes.model, pairs, sites, reference, np.divmod(places, layout.shape[1]))
    with torch.no_grad():
        return passes.forward(layout, [], graph=False, edits=edits, vocabulary=vocabulary).logits


def edits_everywhere(
    model: LoadedModel,
    pairs: Sequence[EncodedPair],
    sites: Mapping[Component, Site],
    reference: Reference,
    places: tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"]],
) -> list[Edit]:
    """Return what replaces every component of ``sites`` at every layer and entry of pairs.

    Args:
        model: the model.
        pairs: the pairs.
        sites: in the order of the forward pass.
        reference: what stands there instead.
        places: of every entry the row and the position in the model's input.
    """
    dimensions, entries = model.dimensions, Entries.of(pairs)
    edits = []
    for component, site in sites.items():
        n_heads = dimensions.heads_of(component) or 1
        row, position = (Index(np.repeat(of, n_heads)) for of in places)
        head = np.tile(np.arange(n_heads), len(places[0]))
        replaced = reference.at_places(pairs, np.repeat(entries.pair, n_heads), np.repeat(entries.position, n_heads))
        edits += [
            Edit(site, layer, row, position, Index(head), replaced.of_heads(component, layer, head, model.device))
            for layer in range(dimensions.n_layers)
        ]
    return edits
