"""Activations within a trace: whole tensors at every site, also of a model that is split over processes.

On a shard nnsight itself gathers what a parallel linear layer takes or gives, and hands the model this process's piece
of it again. Between such layers a tensor holds this process's heads alone, and nnsight leaves it as it is: queries and
keys after a norm of each head. Those are gathered, and put back, here.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from nnsight.intervention.envoy import Envoy
from torch import Tensor

from attrib_batch.models.families import Site
from attrib_batch.models.load import LoadedModel


def activation_at(model: LoadedModel, layer: Envoy, site: Site) -> Float[Tensor, "row position ..."]:
    """Read the tensor at a site of a decoder layer, with all heads, and with rows and positions on two axes."""
    envoy, rows = _envoy(layer, site), None
    if site.rows_as_in is not None:
        module, end = site.rows_as_in
        like = layer.get(module)
        rows = _tensor(like.input if end == "input" else like.output).shape[:2]
    activation = _tensor(envoy.input if site.end == "input" else envoy.output)
    if rows is not None:
        activation = activation.view(*rows, activation.shape[-1])
    if site.changed_later:
        activation = activation.clone()
    if site.bound is not None:
        activation = activation.clamp(-site.bound, site.bound)
    if model.sharded and site.head_axis is not None:
        activation = gather_heads(model, activation, site.head_axis)
    return activation


def put_back(model: LoadedModel, layer: Envoy, site: Site, activation: Float[Tensor, "row position ..."]) -> None:
    """Let the forward pass go on with what ``activation_at`` gave, changed in place or made part of a graph.

    To be called before anything later is read. A tensor that was gathered, reshaped or clipped here has to be put back,
    and a copy of one that the model will change in place; any other is the model's own, or nnsight's to hand back.
    """
    if model.sharded and site.head_axis is not None:
        from nnsight.modeling.tp import shard

        _envoy(layer, site).output = shard(model.module, activation, dim=site.head_axis)
    elif site.changed_later or site.rows_as_in is not None:
        envoy = _envoy(layer, site)
        given = envoy.output
        tensor = activation.clone().view(_tensor(given).shape)
        envoy.output = (tensor, *given[1:]) if isinstance(given, tuple) else tensor


def replace_heads(
    model: LoadedModel,
    site: Site,
    activation: Float[Tensor, "row position ..."],
    places: tuple[Int[Tensor, " patch"], Int[Tensor, " patch"], Int[Tensor, " patch"]],
    value: Float[Tensor, "patch feature"],
) -> None:
    """Replace, in place, what some heads have at some positions.

    Args:
        model: the model.
        site: where ``activation`` was read.
        activation: as ``activation_at`` gives it.
        places: row, position and head of each replacement.
        value: what to put there.
    """
    row, position, head = places
    by_head = site.view(activation, model.dimensions)
    if by_head.untyped_storage().data_ptr() == activation.untyped_storage().data_ptr():
        by_head[row, position, head] = value
        return
    # The view had to copy; it says all the same where in a row each feature is.
    index = torch.arange(activation[0].numel(), device=activation.device, dtype=torch.float64)
    features = site.view(index.view(1, *activation.shape[1:]), model.dimensions)[0, position, head].long()
    activation[(row.unsqueeze(1), *torch.unravel_index(features, activation.shape[1:]))] = value


def skip_layer(model: LoadedModel, layer: Envoy, stream: Float[Tensor, "row position d_model"]) -> None:
    """Leave a decoder layer out of the forward pass: the residual stream is ``stream`` behind it."""
    layer.skip((stream, None) if model.architecture.layer_gives_tuple else stream)


def gather_heads(model: LoadedModel, local: Float[Tensor, "row ..."], axis: int) -> Float[Tensor, "row ..."]:
    """Gather this process's heads and those of all others, in order along ``axis``; every process must call this."""
    from nnsight.modeling.tp import gather

    return cast("Tensor", gather(model.module, local, dim=axis))


def _envoy(layer: Envoy, site: Site) -> Envoy:
    return layer.get(site.module) if site.module else layer


def _tensor(value: object) -> Tensor:
    """Return the tensor that a module takes or gives: itself, or the first of a tuple."""
    return cast("Tensor", value[0] if isinstance(value, tuple) else value)
