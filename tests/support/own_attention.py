"""Queries, keys and values of a run, recorded and replaced.

That happens inside an attention function of the oracle's own, which transformers calls with what the model really
uses: after rotary position embedding, one key and one value per key/value head, and the mask of the layer (causal,
sliding window, chunks). A model whose attention calls no such function has them recorded and replaced where its
projections give them.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from tests.support.sites import QKV, SEPARATE, Sites, heads_apart, heads_together, sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Patch:
    """Replace one activation, at one layer, head and position, by ``value`` [feature]."""

    component: str
    layer: int
    head: int
    position: int
    value: Tensor


@dataclass(frozen=True)
class Softmax:
    """What a layer's attention needs beside its queries and keys."""

    mask: Tensor  # [1, query, key], added to the scores
    scaling: float
    softcap: float | None
    sinks: Tensor | None = None  # [head]: scores of a source that gives nothing

    def probabilities(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention probabilities [..., head, query, key], of ``query`` [..., head, position, feature] and ``key``."""
        scores = query @ to_query_heads(key, query.shape[-3]).transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores = scores + self.mask
        if self.sinks is None:
            return scores.softmax(-1)
        sink = self.sinks.view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]


def to_query_heads(tensor: Tensor, n_heads: int) -> Tensor:
    """Repeat each key/value head for the query heads it serves, which are neighbours."""
    return tensor.repeat_interleave(n_heads // tensor.shape[-3], dim=-3)


@dataclass
class Attention:
    """What the attention function is to record and replace in the run under way."""

    patches: Sequence[Patch] = ()
    shifts: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    softmax: dict[int, Softmax] = field(default_factory=dict)


_IMPLEMENTATION = "oracle"
_under_way = Attention()


def _oracle_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention written out; query, key and value are [row, head, position, feature], and all rows have one mask."""
    layer = module.layer_idx
    tensors = _patched_heads({"q": query, "k": key, "v": value}, layer)
    softmax = Softmax(attention_mask[0], scaling, softcap, s_aux)
    _under_way.softmax[layer] = softmax
    probabilities = softmax.probabilities(tensors["q"], tensors["k"])
    mixed = probabilities @ to_query_heads(tensors["v"], query.shape[1])
    return mixed.transpose(1, 2), None


def _patched_heads(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """Record queries, keys and values [row, head, position, feature] of a layer, with what is to be replaced."""
    for name in {patch.component for patch in _under_way.patches if patch.layer == layer} & tensors.keys():
        tensors[name] = tensors[name].clone()
        for row, patch in enumerate(_under_way.patches):
            if (patch.component, patch.layer) == (name, layer):
                tensors[name][row, patch.head, patch.position] = patch.value
    for name in tensors.keys() & {name for name, of_layer in _under_way.shifts if of_layer == layer}:
        tensors[name] = tensors[name] + _under_way.shifts[name, layer]
    _under_way.seen |= {(name, layer): tensor for name, tensor in tensors.items()}
    return tensors


AttentionInterface.register(_IMPLEMENTATION, _oracle_attention)
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)


@contextmanager
def own_attention_of(
    model: PreTrainedModel,
    patches: Sequence[Patch],
    shifts: Mapping[tuple[str, int], Tensor] = MappingProxyType({}),
) -> Iterator[Attention]:
    """Let ``model`` use the oracle's attention function, and its own again afterwards."""
    global _under_way  # noqa: PLW0603 - transformers calls the function with no place for a state of ours
    before = model.config._attn_implementation
    _under_way = Attention(patches, shifts)
    sites = sites_of(model)
    with ExitStack() as stack:
        if sites.own_attention is None:
            model.set_attn_implementation(_IMPLEMENTATION)
            stack.callback(model.set_attn_implementation, before)
        else:
            for index, layer in enumerate(model.get_submodule(sites.layers)):
                for handle in _hook_projections(layer.get_submodule(sites.own_attention), index, sites, model):
                    stack.callback(handle.remove)
        try:
            yield _under_way
        finally:
            _under_way = Attention()


def _hook_projections(attention: nn.Module, index: int, sites: Sites, model: PreTrainedModel) -> list[Any]:
    """Record and replace queries, keys and values where the projections of an attention module give them."""
    fused = sites.fused
    if fused is not None:

        def on_fused(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            tensors = _patched_heads(dict(zip(QKV, fused.apart(output), strict=True)), index)
            return fused.together(*(tensors[name] for name in QKV))

        return [attention.query_key_value.register_forward_hook(on_fused)]

    def on_one(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            heads = heads_apart(output, model.config.num_attention_heads)
            return heads_together(_patched_heads({name: heads}, index)[name])

        return hook

    modules = (attention.get_submodule(path) for path in SEPARATE)
    return [module.register_forward_hook(on_one(name)) for name, module in zip(QKV, modules, strict=True)]
