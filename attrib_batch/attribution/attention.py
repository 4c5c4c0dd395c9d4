"""How a layer's attention turns queries and keys into probabilities, as the model itself computes it.

Queries, keys, mask, scaling and soft cap are what transformers hands its attention function: after normalisation and
position embedding, with the cached keys of the prefix, and with the mask of the layer (causal, sliding window). So
nothing here has to know an architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from attrib_batch.attribution.batches import Tokens
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes.padded import padded_inputs
from attrib_batch.models.activations import gather_heads
from attrib_batch.models.load import LoadedModel
from attrib_batch.models.rotary import prefix_is_reusable


@dataclass(frozen=True)
class Attention:
    """What one layer's attention works on, in float32 at least.

    The last keys are those of the suffix positions; before them stand the cached ones that the layer still sees. Keys
    and values are repeated for the query heads that they serve.
    """

    query: Float[Tensor, "row head position d_head"]
    key: Float[Tensor, "row head source d_head"]
    value: Float[Tensor, "row head source d_head"]
    mask: Float[Tensor, "#row 1 position source"]
    """Added to the scores: 0, or minus infinity where a position does not see a source."""
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


def read_attention(model: LoadedModel, rows: Sequence[Tokens], prefix: int) -> list[Attention]:
    """Read the attention of every layer, without a graph.

    Args:
        model: the model.
        rows: prompts of one length.
        prefix: their first positions, which are no queries; their keys come from a cache where that is exact.
    """
    cached = prefix if prefix_is_reusable(model.module.config, prefix, len(rows[0])) else 0
    inputs = padded_inputs(model, rows, cached)
    calls: list[Any] = []
    with torch.no_grad(), model.traced.trace(**inputs) as tracer:
        for layer in model.traced.get(model.architecture.layers):
            attention = layer.get(model.architecture.attention)
            # The first use of the name in transformers' forward methods looks the function up, the second calls it.
            calls.append(attention.source.attention_interface_1.inputs)
        tracer.stop()
    return [_attention(model, *call).after(prefix - cached) for call in calls]


def _attention(model: LoadedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attention:
    _module, query, key, value, mask = args
    if query.shape[1] < model.dimensions.n_heads:
        # A shard's attention works on its own heads, with the keys and values that serve them.
        query, key, value = (gather_heads(model, local, axis=1) for local in (query, key, value))
    served = query.shape[1] // key.shape[1]
    return Attention(
        query=at_least_float32(query),
        key=at_least_float32(key).repeat_interleave(served, dim=1),
        value=at_least_float32(value).repeat_interleave(served, dim=1),
        mask=_additive(mask, query, key.shape[2]),
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
