"""How a layer's attention turns queries and keys into probabilities, as the model itself computes it.

Queries, keys, mask, scaling, soft cap and sinks are what transformers hands its attention function: after normalisation
and position embedding, with the cached keys of the prefix, and with the mask of the layer (causal, sliding window,
chunks). So nothing here has to know an architecture.

An attention sink (a learned score, by head, that takes a share of the probabilities and gives nothing) is one source
more, the first: its key and its value are 0, and its score is in the mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from attrib_batch.attribution.batches import Tokens
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes import Edit
from attrib_batch.attribution.passes.padded import padded_inputs
from attrib_batch.attribution.passes.places import Index
from attrib_batch.models.activations import activation_at, gather_heads, put_back
from attrib_batch.models.load import LoadedModel
from attrib_batch.models.rotary import prefix_is_reusable


@dataclass(frozen=True)
class Attention:
    """What one layer's attention works on, in float32 at least.

    The last keys are those of the suffix positions; before them stand the cached ones that the layer still sees, and
    before all of them a sink. Keys and values are repeated for the query heads that they serve.
    """

    query: Float[Tensor, "row head position d_head"]
    key: Float[Tensor, "row head source d_head"]
    value: Float[Tensor, "row head source d_head"]
    mask: Float[Tensor, "#row #head position source"]
    """Added to the scores: 0, or minus infinity where a position does not see a source; the score of a sink."""
    scaling: float
    softcap: float | None
    n_kv_heads: int

    @property
    def n_cached(self) -> int:
        """How many sources stand before the suffix."""
        return self.key.shape[2] - self.query.shape[2]

    def after(self, n_positions: int) -> Attention:
        """Return the same without the first queries."""
        mask = self.mask if self.mask.shape[2] == 1 else self.mask[:, :, n_positions:]
        return replace(self, query=self.query[:, :, n_positions:], mask=mask)

    def scores(
        self, query: Float[Tensor, "row head position d_head"], key: Float[Tensor, "row head source d_head"]
    ) -> Float[Tensor, "row head position source"]:
        """Compute the attention scores of ``query`` and ``key``, before the mask."""
        scores = query @ key.transpose(-1, -2) * self.scaling
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def read_attention(
    model: LoadedModel, rows: Sequence[Tokens], prefix: int, edits: Sequence[Edit] = ()
) -> list[Attention]:
    """Read the attention of every layer, without a graph.

    Args:
        model: the model.
        rows: prompts of one length.
        prefix: their first positions, which are no queries; their keys come from a cache where that is exact.
        edits: queries and keys that are replaced, at positions of the prompts, those of a layer in the order of the
            forward pass; what enters a layer is what it is without them.
    """
    cached = prefix if prefix_is_reusable(model.module.config, prefix, len(rows[0])) else 0
    edits_of: dict[int, list[Edit]] = defaultdict(list)
    for edit in edits:
        edits_of[edit.layer].append(replace(edit, position=Index(edit.position.places - cached)))
    # Each call has a cache of its own: the model adds keys to it.
    entering = _entering(model, padded_inputs(model, rows, cached)) if edits else []
    inputs = padded_inputs(model, rows, cached)
    calls: list[Any] = []
    with torch.no_grad(), model.traced.trace(**inputs) as tracer:
        for number, layer in enumerate(model.traced.get(model.architecture.layers)):
            if edits:
                layer.input[:] = entering[number]
            for edit in edits_of[number]:
                activation = activation_at(model, layer, edit.site)
                edit.apply(model, activation)
                put_back(model, layer, edit.site, activation)
            attention = layer.get(model.architecture.attention)
            # The first use of the name in transformers' forward methods looks the function up, the second calls it.
            calls.append(attention.source.attention_interface_1.inputs)
        tracer.stop()
    return [_attention(model, *call).after(prefix - cached) for call in calls]


def _entering(model: LoadedModel, inputs: dict[str, Any]) -> list[Float[Tensor, "row position d_model"]]:
    """Return what enters every layer."""
    entering: list[Tensor] = []
    with torch.no_grad(), model.traced.trace(**inputs) as tracer:
        for layer in model.traced.get(model.architecture.layers):
            # A copy: it is put in place of what the next call has there.
            entering.append(layer.input.clone().save())  # noqa: PERF401 - traced line by line
        tracer.stop()
    return entering


def _attention(model: LoadedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attention:
    _module, query, key, value, mask = args
    if query.shape[1] < model.dimensions.n_heads:
        # A shard's attention works on its own heads, with the keys and values that serve them.
        query, key, value = (gather_heads(model, local, axis=1) for local in (query, key, value))
    served = query.shape[1] // key.shape[1]
    keys, values = (at_least_float32(tensor).repeat_interleave(served, dim=1) for tensor in (key, value))
    additive = _additive(mask, query, key.shape[2])
    if (sinks := kwargs.get("s_aux")) is not None:
        keys, values, additive = _with_sinks(model, sinks, keys, values, additive)
    return Attention(
        query=at_least_float32(query),
        key=keys,
        value=values,
        mask=additive,
        scaling=kwargs["scaling"],
        softcap=kwargs.get("softcap"),
        n_kv_heads=key.shape[1],
    )


def _additive(
    mask: Shaped[Tensor, "#row 1 position source"] | None,
    query: Float[Tensor, "row head position d_head"],
    n_sources: int,
) -> Float[Tensor, "#row 1 position source"]:
    if mask is None:
        # transformers leaves out the mask where it is plainly causal and lets the attention function know by that.
        n_positions = query.shape[2]
        mask = torch.ones(1, 1, n_positions, n_sources, dtype=torch.bool, device=query.device)
        mask = mask.tril(diagonal=n_sources - n_positions)
    if mask.dtype != torch.bool:
        # The smallest number of a narrow type is no minus infinity in a wider one.
        mask = mask > torch.finfo(mask.dtype).min / 2
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


def _with_sinks(
    model: LoadedModel,
    sinks: Float[Tensor, " head"],
    keys: Float[Tensor, "row head source d_head"],
    values: Float[Tensor, "row head source d_head"],
    mask: Float[Tensor, "#row 1 position source"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the sinks before the other sources."""
    n_heads = keys.shape[1]
    if sinks.shape[0] < n_heads:
        sinks = gather_heads(model, sinks, axis=0)
    scores = at_least_float32(sinks).view(1, n_heads, 1, 1).expand(mask.shape[0], -1, mask.shape[2], -1)
    nothing = keys.new_zeros(*keys.shape[:2], 1, keys.shape[3])
    return (
        torch.cat([nothing, keys], dim=2),
        torch.cat([nothing, values], dim=2),
        torch.cat([scores, mask.to(scores.dtype).expand(-1, n_heads, -1, -1)], dim=3),
    )
