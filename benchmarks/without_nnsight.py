"""The engine with plain torch hooks where it uses nnsight: everything else is the engine's own code.

Two functions run the model: one grows a cache by tokens, the other runs suffixes and reads sites. Both are replaced, so
the difference to the engine is what nnsight costs.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from attrib_batch.attribution import forward as runs
from attrib_batch.attribution.methods import atp
from benchmarks import recipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor, nn
    from transformers import Cache

    from attrib_batch.attribution.batches import Tokens
    from attrib_batch.models.families import Site, SiteKey
    from attrib_batch.models.load import LoadedModel
    from benchmarks.workloads import Workload


class _StopRunError(Exception):
    """Ends a forward pass when nothing after it is needed."""


def engine_without_nnsight(model: LoadedModel, work: Workload) -> np.ndarray:
    """The engine's scores, with hooks in place of traces."""
    with patch.object(atp, "forward_suffixes", _forward_suffixes), patch.object(runs, "_extend", _extend):
        return recipes.engine(model, work)


def _forward_suffixes(
    model: LoadedModel,
    rows: Sequence[Tokens],
    prefix: runs.PrefixCache,
    sites: Sequence[Site],
    *,
    graph: bool,
    vocabulary: Sequence[int] | None,
) -> runs.Capture:
    """Stands in for ``runs.forward_suffixes``."""
    keys = list(dict.fromkeys(site.key for site in sites))
    layers = model.module.get_submodule(model.architecture.layers)
    read: list[dict[SiteKey, Tensor]] = [{} for _ in layers]

    def reader(layer: int, key: SiteKey) -> Callable[..., None]:
        def keep(activation: Tensor) -> None:
            if graph and not activation.requires_grad:
                activation.requires_grad_(True)
            read[layer][key] = activation

        if key[1] == "input":
            return lambda _module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"])
        return lambda _module, _args, output: keep(output)

    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(graph))
        for index, layer in enumerate(layers):
            for key in keys:
                module = layer.get_submodule(key[0])
                handle = (
                    module.register_forward_pre_hook(reader(index, key), with_kwargs=True)
                    if key[1] == "input"
                    else module.register_forward_hook(reader(index, key))
                )
                stack.callback(handle.remove)
        head = model.module.get_submodule(model.architecture.unembedding)
        stack.callback(head.register_forward_pre_hook(lambda _module, args: (args[0].contiguous(),)).remove)
        if vocabulary is not None:
            stack.enter_context(_only(head, torch.tensor(vocabulary)))
        logits = model.module(**runs.suffix_inputs(model, rows, prefix)).logits[:, -1]
    return runs.Capture(read, logits)


@contextmanager
def _only(head: nn.Module, index: Tensor) -> Iterator[None]:
    """Let the unembedding give the logits of the tokens at ``index`` alone."""
    weight, bias = head.weight, head.bias
    head.weight = torch.nn.Parameter(weight[index], requires_grad=False)
    head.bias = None if bias is None else torch.nn.Parameter(bias[index], requires_grad=False)
    try:
        yield
    finally:
        head.weight, head.bias = weight, bias


def _extend(model: LoadedModel, rows: Sequence[Tokens], cache: Cache | None) -> Cache:
    from transformers import DynamicCache

    def stop(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _StopRunError

    ids = torch.tensor(rows, dtype=torch.long, device=model.device)
    cache = DynamicCache(config=model.module.config) if cache is None else cache
    last = model.module.get_submodule(model.architecture.layers)[-1].get_submodule(model.architecture.attention)
    handle = last.register_forward_hook(stop)
    try:
        with torch.no_grad():
            model.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    except _StopRunError:
        return cache
    finally:
        handle.remove()
    raise RuntimeError(f"{model.architecture.attention} of the last layer never ran")
