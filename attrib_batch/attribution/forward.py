"""Forward passes through nnsight: shared prefixes without a graph, suffixes from their key/value cache.

Causal attention makes every activation before the first difference equal in both prompts of a pair, so those positions
are computed once, without a graph, and the suffixes of both prompts start from that cache. This is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from attrib_batch.attribution.batches import Tokens
from attrib_batch.models.activations import activation_at, put_back
from attrib_batch.models.families import Site, SiteKey
from attrib_batch.models.load import LoadedModel
from attrib_batch.models.rotary import prefix_is_reusable

SHARED_START_TOKENS = 32
"""How many token positions a pass of its own for the start that all prefixes share must save to be worth it."""


@dataclass(frozen=True)
class Capture:
    """What a forward pass of suffixes read.

    ``sites[layer][key]`` is the tensor of a site (row, suffix position, ...); ``logits`` is (row, vocab), at the last
    position. With a graph, all of them are connected to the first site's tensors.
    """

    sites: list[dict[SiteKey, Float[Tensor, "row ..."]]]
    logits: Float[Tensor, "row vocab"]


class PrefixCache:
    """The key/value caches of the distinct prefixes of a micro-batch, computed once, without a graph."""

    def __init__(self, model: LoadedModel, rows: Sequence[Tokens], length: int) -> None:
        """Compute the prefixes.

        Args:
            model: the model.
            rows: whole prompts, which share prefixes where they begin with the same ``length`` tokens.
            length: positions in the prefix; may be 0.

        Raises:
            ValueError: the prefix, computed alone, is not that of the whole prompts.
        """
        self.length = length
        self._cache: Cache | None = None
        if length == 0:
            return
        config, n_tokens = model.module.config, len(rows[0])
        if not prefix_is_reusable(config, length, n_tokens):
            raise ValueError(f"{length} of {n_tokens} tokens, computed alone, have other keys than within the prompt")
        prefixes = sorted({tokens[:length] for tokens in rows})
        self._index = {prefix: index for index, prefix in enumerate(prefixes)}
        shared = _common_start(prefixes[0], prefixes[-1])
        cache = None
        worth_it = shared < length and shared * (len(prefixes) - 1) >= SHARED_START_TOKENS
        if worth_it and prefix_is_reusable(config, shared, n_tokens):
            cache = _extend(model, [prefixes[0][:shared]], None)
            cache = _select(cache, torch.zeros(len(prefixes), dtype=torch.long))
        else:
            shared = 0
        self._cache = _extend(model, [prefix[shared:] for prefix in prefixes], cache)

    def for_rows(self, rows: Sequence[Tokens]) -> Cache | None:
        """Return a cache whose rows are the prefixes of ``rows``; it may grow without touching this one."""
        if self._cache is None:
            return None
        return _select(self._cache, torch.tensor([self._index[tokens[: self.length]] for tokens in rows]))


def forward_suffixes(
    model: LoadedModel,
    rows: Sequence[Tokens],
    prefix: PrefixCache,
    sites: Sequence[Site],
    *,
    graph: bool,
    start: Float[Tensor, "row position d_model"] | None = None,
    vocabulary: Sequence[int] | None = None,
) -> Capture:
    """Pass the suffixes of ``rows`` through the model and read ``sites`` at every layer.

    With ``graph``, gradients are required from the first site on; parameters stay frozen, so nothing before it is
    differentiated. ``start`` enters the first layer in place of what the suffixes' tokens would give. With
    ``vocabulary``, logits are those of these tokens alone.
    """
    inputs = suffix_inputs(model, rows, prefix)
    layers = model.traced.get(model.architecture.layers)
    by_key = {site.key: site for site in sites}
    read: list[dict[SiteKey, Tensor]] = []
    # On shards a pass without a graph would take another way through transformers, on which the output of a
    # row-parallel layer is read before its bias is added; with frozen parameters gradients may be on without a graph.
    with torch.set_grad_enabled(graph or model.sharded), model.traced.trace(**inputs):
        if start is not None:
            layers[0].input[:] = start
        for layer in layers:
            found = {}
            for key, site in by_key.items():
                activation = activation_at(model, layer, site)
                if graph and not activation.requires_grad:
                    activation.requires_grad_(True)
                put_back(model, layer, site, activation)
                found[key] = activation
            read.append(found)
        logits = last_logits(model, vocabulary)
    return Capture(read, logits)


def last_logits(model: LoadedModel, vocabulary: Sequence[int] | None = None) -> Float[Tensor, "row vocab"]:
    """Read the logits of the last position, saved within a trace of a call with ``logits_to_keep=1``, after all layers.

    With ``vocabulary`` they are those of these tokens, in that order; whatever the model does to logits after the
    unembedding, it does to them. A shard holds part of the unembedding, and can give all logits only.
    """
    unembedding = model.traced.get(model.architecture.unembedding)
    if vocabulary is not None:
        linear = model.module.get_submodule(model.architecture.unembedding)
        index = torch.tensor(vocabulary, device=linear.weight.device)
        bias = None if linear.bias is None else linear.bias[index]
        unembedding.skip(torch.nn.functional.linear(unembedding.input.contiguous(), linear.weight[index], bias))
    else:
        # The last position is a slice of the residual stream. A matrix product with a slice goes row by row, at a
        # tenth of the speed; for a small model that is more than all its layers take.
        unembedding.input = unembedding.input.contiguous()
    return cast("Tensor", model.traced.output.logits[:, -1].save())


def suffix_inputs(model: LoadedModel, rows: Sequence[Tokens], prefix: PrefixCache) -> dict[str, Any]:
    """Build the arguments of a call of the model with the suffixes of ``rows``, from their prefixes."""
    cache = prefix.for_rows(rows)
    return {
        "input_ids": _ids(model, [tokens[prefix.length :] for tokens in rows]),
        "past_key_values": cache,
        "use_cache": cache is not None,
        "logits_to_keep": 1,
    }


def read_start(
    model: LoadedModel, rows: Sequence[Tokens], prefix: PrefixCache
) -> Float[Tensor, "row position d_model"]:
    """Read what enters the first layer for the suffixes of ``rows``; no layer is computed."""
    inputs = suffix_inputs(model, rows, prefix)
    first = model.traced.get(model.architecture.layers)[0]
    with torch.no_grad(), model.traced.trace(**inputs) as tracer:
        start: Tensor = first.input.save()
        tracer.stop()
    return start


def _extend(model: LoadedModel, rows: Sequence[Tokens], cache: Cache | None) -> Cache:
    """Pass tokens through the model without a graph and return the cache grown by them."""
    from transformers import DynamicCache

    ids = _ids(model, rows)
    cache = DynamicCache(config=model.module.config) if cache is None else cache
    last = model.traced.get(model.architecture.layers)[-1].get(model.architecture.attention)
    with (
        torch.no_grad(),
        model.traced.trace(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1) as tracer,
    ):
        # Nothing after the last layer's keys and values is needed.
        last.output  # noqa: B018 - reading it is the event the pass stops at
        tracer.stop()
    return cache


def _select(cache: Cache, index: Int[Tensor, " row"]) -> Cache:
    """Return a cache with the rows at ``index``; layers grow by rebinding, so the original stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in selected.layers:
        place = index.to(layer.keys.device)
        layer.keys = layer.keys.index_select(0, place)
        layer.values = layer.values.index_select(0, place)
    return selected


def _ids(model: LoadedModel, rows: Sequence[Tokens]) -> Int[Tensor, "row position"]:
    ids = torch.tensor(rows, dtype=torch.long)
    if model.device.type == "cuda":
        ids = ids.pin_memory()
    return ids.to(model.device, non_blocking=True)


def _common_start(first: Tokens, last: Tokens) -> int:
    """Length of the start that all of a sorted list of prefixes share, from its first and last."""
    for index, (a, b) in enumerate(zip(first, last, strict=True)):
        if a != b:
            return index
    return len(first)
