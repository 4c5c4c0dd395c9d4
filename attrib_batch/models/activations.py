"""Activations within a trace: whole tensors at every site, also of a model that is split over processes.

On a shard nnsight itself gathers what a parallel linear layer takes or gives, and hands the model this process's piece
of it again. Between such layers a tensor holds this process's heads alone, and nnsight leaves it as it is: queries and
keys after a norm of each head. Those are gathered, and put back, here.
"""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from nnsight.intervention.envoy import Envoy
from torch import Tensor

from attrib_batch.models.families import Site
from attrib_batch.models.load import LoadedModel


def activation_at(model: LoadedModel, layer: Envoy, site: Site) -> Float[Tensor, "row ..."]:
    """Read the tensor at a site of a decoder layer, with all heads."""
    envoy = _envoy(layer, site)
    activation = envoy.input if site.end == "input" else envoy.output
    if model.sharded and site.head_axis is not None:
        activation = gather_heads(model, activation, site.head_axis)
    return cast("Tensor", activation)


def put_back(model: LoadedModel, layer: Envoy, site: Site, activation: Float[Tensor, "row ..."]) -> None:
    """Let the forward pass go on with what ``activation_at`` gave, changed in place or made part of a graph.

    To be called before anything later is read. Only a tensor that was gathered here has to be put back; any other is
    the model's own, or nnsight's to hand back.
    """
    if model.sharded and site.head_axis is not None:
        from nnsight.modeling.tp import shard

        _envoy(layer, site).output = shard(model.module, activation, dim=site.head_axis)


def gather_heads(model: LoadedModel, local: Float[Tensor, "row ..."], axis: int) -> Float[Tensor, "row ..."]:
    """Gather this process's heads and those of all others, in order along ``axis``; every process must call this."""
    from nnsight.modeling.tp import gather

    return cast("Tensor", gather(model.module, local, dim=axis))


def _envoy(layer: Envoy, site: Site) -> Envoy:
    return layer.get(site.module) if site.module else layer
