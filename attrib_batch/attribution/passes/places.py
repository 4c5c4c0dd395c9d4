"""Tables of places in tensors: made once, and copied once to each device that needs them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from attrib_batch.models.devices import on_device


class Index:
    """Places to take from the first axis of tensors, wherever these lie."""

    def __init__(self, places: Int[np.ndarray, " place"]) -> None:
        """Take ``places``."""
        self.places = np.asarray(places, dtype=np.int64)
        self._all = bool(len(self.places) and (self.places == np.arange(len(self.places))).all())
        self._on: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        """Return how many places there are."""
        return len(self.places)

    def on(self, device: torch.device) -> Int[Tensor, " place"]:
        """Return the places as a tensor on a device."""
        if device not in self._on:
            self._on[device] = on_device(self.places, device)
        return self._on[device]

    def is_all_of(self, n_rows: int) -> bool:
        """Return whether these are all of so many places, in order."""
        return self._all and len(self) == n_rows

    def take(self, values: Shaped[Tensor, "row ..."]) -> Shaped[Tensor, "place ..."]:
        """Return what is at the places; not a copy where these are all, in order."""
        if self.is_all_of(len(values)):
            return values
        return values.index_select(0, self.on(values.device))


def ranges(start: Int[np.ndarray, " range"], count: Int[np.ndarray, " range"]) -> Int[np.ndarray, " all"]:
    """Return the numbers of ranges, one range after the other."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    found: np.ndarray = np.arange(total) + np.repeat(start - (ends - count), count)
    return found
