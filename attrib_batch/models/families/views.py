"""Views of a site's tensor as (pair, position, head, feature). Each inverts a layout some family uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from attrib_batch.models.families.dimensions import Dimensions

HeadsView = Callable[["Float[Tensor, '...']", "Dimensions"], "Float[Tensor, 'pair position head feature']"]


def whole(x: Float[Tensor, "pair position feature"], _: Dimensions) -> Float[Tensor, "pair position 1 feature"]:
    """View a tensor without heads as one of a single head."""
    return rearrange(x, "pair position feature -> pair position 1 feature")


def flat(x: Float[Tensor, "pair position features"], d: Dimensions) -> Float[Tensor, "pair position head feature"]:
    """Split the feature axis into heads side by side."""
    return rearrange(x, "pair position (head feature) -> pair position head feature", feature=d.head_dim)


def split(x: Float[Tensor, "pair position head feature"], _: Dimensions) -> Float[Tensor, "pair position head feature"]:
    """Return a tensor that has an axis of heads after the positions, as it is."""
    return x


def split_heads_first(
    x: Float[Tensor, "pair head position feature"], _: Dimensions
) -> Float[Tensor, "pair position head feature"]:
    """Move the axis of heads behind the positions."""
    return rearrange(x, "pair head position feature -> pair position head feature")


def blocks_of_three(part: int) -> HeadsView:
    """Return a view of one part of GPT-2's fused projection: all queries, then all keys, then all values."""

    def view(x: Float[Tensor, "pair position features"], d: Dimensions) -> Float[Tensor, "pair position head feature"]:
        return rearrange(
            x,
            "pair position (part head feature) -> part pair position head feature",
            part=3,
            feature=d.head_dim,
        )[part]

    return view


def interleaved_by_head(part: int) -> HeadsView:
    """Return a view of one part of GPT-NeoX's fused projection: each head's query, key and value side by side."""

    def view(x: Float[Tensor, "pair position features"], d: Dimensions) -> Float[Tensor, "pair position head feature"]:
        return rearrange(
            x,
            "pair position (head part feature) -> part pair position head feature",
            part=3,
            feature=d.head_dim,
        )[part]

    return view


def one_after_another(part: int) -> HeadsView:
    """Return a view of one part of a projection that gives all queries, then all keys, then all values."""

    def view(x: Float[Tensor, "pair position features"], d: Dimensions) -> Float[Tensor, "pair position head feature"]:
        heads = rearrange(x, "pair position (head feature) -> pair position head feature", feature=d.head_dim)
        return torch.split(heads, [d.n_heads, d.n_kv_heads, d.n_kv_heads], dim=2)[part]

    return view


def interleaved_by_group(part: int) -> HeadsView:
    """Return a view of one part of Falcon's projection: for each key/value head its queries, its key and its value."""

    def view(x: Float[Tensor, "pair position features"], d: Dimensions) -> Float[Tensor, "pair position head feature"]:
        grouped = rearrange(
            x,
            "pair position (group member feature) -> pair position group member feature",
            group=d.n_kv_heads,
            feature=d.head_dim,
        )
        served = grouped.shape[3] - 2
        return rearrange(
            torch.split(grouped, [served, 1, 1], dim=3)[part],
            "pair position group member feature -> pair position (group member) feature",
        )

    return view
