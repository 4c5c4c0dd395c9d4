"""Runs of a model by plain torch hooks: one with every component recorded, or many with an activation replaced."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tests.support import device
from tests.support.own_attention import Attention, Patch, Softmax, own_attention_of, to_query_heads
from tests.support.sites import QKV, Sites, component_names, sites_of, text_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedModel

__all__ = [
    "QKV",
    "Patch",
    "Run",
    "Softmax",
    "by_head",
    "component_names",
    "n_layers",
    "patched_logits",
    "run",
    "sites_of",
    "to_query_heads",
]


@dataclass
class Run:
    """What one forward pass of one prompt leaves behind."""

    logits: Tensor  # [vocab], at the last position
    embeddings: Tensor  # [1, position, feature]
    seen: dict[tuple[str, int], Tensor]  # (component, layer) -> the tensor the model itself went on with
    softmax: dict[int, Softmax]  # layer -> how its attention turns queries and keys into probabilities


def run(
    model: PreTrainedModel,
    ids: Sequence[int],
    *,
    own_attention: bool,
    embeddings: Tensor | None = None,
    dropped_layer: int | None = None,
    shifts: Mapping[tuple[str, int], Tensor] = MappingProxyType({}),
) -> Run:
    """Run ``model`` on one prompt and record every component.

    Args:
        own_attention: use the oracle's attention function; without it there are no q, k, v and no softmax.
        embeddings: take these [1, position, feature] for the token embeddings of ``ids``.
        dropped_layer: let no gradient through what this layer adds to the residual stream; its skip
            connection passes gradients on, and no value changes.
        shifts: what is added to activations, by component and layer.
    """
    found, [logits] = _run_rows(
        model, [ids], (), own_attention=own_attention, embeddings=embeddings, dropped_layer=dropped_layer, shifts=shifts
    )
    return replace(found, logits=logits)


def patched_logits(
    model: PreTrainedModel, ids: Sequence[int], patches: Sequence[Patch], *, own_attention: bool
) -> Tensor:
    """Return the logits [patch, vocab] of one prompt with each activation replaced alone, the others left.

    Each has a row of its own: together they cost little more than one.
    """
    _, logits = _run_rows(model, [ids] * len(patches), patches, own_attention=own_attention)
    return logits


def _run_rows(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    patches: Sequence[Patch],
    *,
    own_attention: bool,
    embeddings: Tensor | None = None,
    dropped_layer: int | None = None,
    shifts: Mapping[tuple[str, int], Tensor] = MappingProxyType({}),
) -> tuple[Run, Tensor]:
    """Run ``model`` on rows that are alike but for the patches, one a row; what it leaves, and the logits of all."""
    sites = sites_of(model)
    seen: dict[tuple[str, int], Tensor] = {}
    leaf: list[Tensor] = []

    def replace_embeddings(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        chosen = output if embeddings is None else embeddings
        leaf.append(chosen.detach().clone().requires_grad_())
        return leaf[0]

    with ExitStack() as stack:
        attention = stack.enter_context(own_attention_of(model, patches, shifts)) if own_attention else Attention()
        stack.callback(model.get_submodule(sites.embedding).register_forward_hook(replace_embeddings).remove)
        for index, layer in enumerate(model.get_submodule(sites.layers)):
            handles = _hook_layer(
                layer, index, sites, seen, patches, n_rows=len(rows), drop=index == dropped_layer, shifts=shifts
            )
            for handle in handles:
                stack.callback(handle.remove)
        tokens = torch.tensor([list(ids) for ids in rows], device=device.of(model))
        logits = model(tokens, use_cache=False).logits[:, -1]
    return Run(logits, leaf[0], seen | attention.seen, attention.softmax), logits


def _hook_layer(
    layer: nn.Module,
    index: int,
    sites: Sites,
    seen: dict[tuple[str, int], Tensor],
    patches: Sequence[Patch],
    *,
    n_rows: int,
    drop: bool,
    shifts: Mapping[tuple[str, int], Tensor],
) -> list[Any]:
    """Record, and where asked replace, the activations of one layer."""

    def of_output(component: str, output: Any, *, drop: bool) -> Any:
        """What a module is to give for ``output``: a tensor or a tuple, with rows and positions on one axis or two."""
        given = output[0] if isinstance(output, tuple) else output
        rows = given.unflatten(0, (n_rows, -1)) if given.ndim == 2 else given
        rows = put(component, rows).clone()  # some models change it in place afterwards
        tensor = (rows.detach() if drop else rows).view(given.shape)
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    def put(component: str, tensor: Tensor) -> Tensor:
        mine = [row for row, patch in enumerate(patches) if (patch.component, patch.layer) == (component, index)]
        if (component, index) in shifts:
            tensor = tensor + shifts[component, index]
        if mine:
            tensor = tensor.clone()
        for row in mine:
            patch, width = patches[row], patches[row].value.shape[0]
            tensor[row, patch.position, patch.head * width : (patch.head + 1) * width] = patch.value
        seen[component, index] = tensor
        return tensor

    def on_input(component: str) -> Callable[..., tuple[Any, ...]]:
        return lambda _module, args: (put(component, args[0]), *args[1:])

    def on_output(component: str, *, drop: bool = False) -> Callable[..., Any]:
        return lambda _module, _args, output: of_output(component, output, drop=drop)

    def on_mid(_module: nn.Module, args: tuple[Any, ...]) -> None:
        # The skip connection holds this very tensor: replacing it would change only one of two paths.
        for row, patch in enumerate(patches):
            if (patch.component, patch.layer) == ("resid_mid", index):
                args[0][row, patch.position] = patch.value
        if ("resid_mid", index) in shifts:
            args[0].add_(shifts["resid_mid", index])
        seen["resid_mid", index] = args[0]

    names = [sites.attn_out] if isinstance(sites.attn_out, str) else sites.attn_out
    [attn_out] = [name for name in names if hasattr(layer, name.split(".")[0])]
    handles = [
        layer.register_forward_pre_hook(on_input("resid_pre")),
        layer.get_submodule(attn_out).register_forward_hook(on_output("attn_out", drop=drop)),
        layer.get_submodule(sites.mlp_out).register_forward_hook(on_output("mlp_out", drop=drop)),
        layer.register_forward_hook(on_output("resid_post")),
    ]
    if sites.projection is not None:
        handles.append(layer.get_submodule(sites.projection).register_forward_pre_hook(on_input("z")))
    if sites.mid is not None:
        mid = layer.get_submodule(sites.mid)
        hook = mid.register_forward_hook if sites.mid_is_output else mid.register_forward_pre_hook
        handles.append(hook(on_output("resid_mid") if sites.mid_is_output else on_mid))
    return handles


def n_layers(model: PreTrainedModel) -> int:
    """How many layers ``model`` has."""
    return len(model.get_submodule(sites_of(model).layers))


def by_head(model: PreTrainedModel, component: str, tensor: Tensor) -> Tensor:
    """An activation, or a gradient on it, as [head, position, feature]."""
    if component == "z":
        return tensor[0].unflatten(-1, (text_config(model).num_attention_heads, -1)).transpose(0, 1)
    return tensor if component not in QKV else tensor[0]
