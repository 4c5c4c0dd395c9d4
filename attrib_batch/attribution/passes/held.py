"""Keys and values that passes computed and that later ones attend to: where they are, and several of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.passes.places import Index, ranges


@dataclass(frozen=True)
class Keys:
    """The keys and values of stretches that were computed together."""

    keys: Sequence[Float[Tensor, "kv_head key feature"]]
    """For each layer."""
    values: Sequence[Float[Tensor, "kv_head key value_feature"]]


@dataclass(frozen=True)
class Recorded(Keys):
    """Those of a pass, layer by layer as it computes them."""

    keys: list[Float[Tensor, "kv_head key feature"]] = field(default_factory=list)
    values: list[Float[Tensor, "kv_head key value_feature"]] = field(default_factory=list)


class Gathered(Sequence[Tensor]):
    """For each layer what several computations have at some of their places, joined when the layer is asked for.

    Passes that begin at a later layer need none of those below, and those that keep no graph need one at a time.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]], indices: Sequence[Index]) -> None:
        """Gather ``indices[i]``, along the second axis, from each layer of ``parts[i]``."""
        self._parts, self._indices = parts, indices

    def __len__(self) -> int:
        """Return how many layers there are."""
        return len(self._parts[0])

    @overload
    def __getitem__(self, layer: int) -> Tensor: ...

    @overload
    def __getitem__(self, layer: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, layer: int | slice) -> Tensor | Sequence[Tensor]:
        """Return what a layer has, as a copy."""
        if isinstance(layer, slice):
            return [self[number] for number in range(*layer.indices(len(self)))]
        of_layer = [part[layer] for part in self._parts]
        return torch.cat(
            [
                values.index_select(1, index.on(values.device))
                for values, index in zip(of_layer, self._indices, strict=True)
            ],
            1,
        )


@dataclass(frozen=True)
class Held:
    """Where the keys and values of a stretch are."""

    within: Keys
    start: int


def joined(held: Sequence[Held], n_tokens: Sequence[int]) -> tuple[Keys, list[int], int]:
    """Return keys and values that hold all of ``held``, where each begins, and how many there are.

    They are a copy only if they lie apart.
    """
    apart = {id(one.within): one.within for one in held}
    if len(apart) == 1:
        within = held[0].within
        return within, [one.start for one in held], within.keys[0].shape[1]
    # One part for each pass that computed some of them: there are as many passes as there are tokens, or a few.
    places, indices = [0] * len(held), []
    done = 0
    for within in apart.values():
        members = [index for index, one in enumerate(held) if one.within is within]
        count = np.array([n_tokens[index] for index in members])
        start = np.array([held[index].start for index in members])
        indices.append(Index(ranges(start, count)))
        for index, place in zip(members, (done + np.cumsum(count) - count).tolist(), strict=True):
            places[index] = place
        done += int(count.sum())
    keys, values = (Gathered([getattr(one, name) for one in apart.values()], indices) for name in ("keys", "values"))
    return Keys(keys, values), places, done
