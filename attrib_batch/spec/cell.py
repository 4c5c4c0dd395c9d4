"""The components that can be attributed, and the cells of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Component(StrEnum):
    """An activation that can be attributed, in the order of the forward pass within a layer."""

    RESID_PRE = "resid_pre"
    Q = "q"
    K = "k"
    V = "v"
    Z = "z"
    ATTN_OUT = "attn_out"
    RESID_MID = "resid_mid"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"

    @property
    def has_heads(self) -> bool:
        """Whether the activation is split over attention heads (otherwise ``head`` is null)."""
        return self in {Component.Q, Component.K, Component.V, Component.Z}

    @property
    def is_stream(self) -> bool:
        """Whether each layer's activation contains what the layers below wrote: their effects are no parts of a sum."""
        return self in {Component.RESID_PRE, Component.RESID_MID, Component.RESID_POST}


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the sweep: a model, a dataset and a method, by the names that partitions carry."""

    model: str
    dataset: str
    method: str

    @property
    def partition(self) -> str:
        """The Hive partition folder below a table's folder."""
        return f"model={self.model}/dataset={self.dataset}/method={self.method}"

    def __str__(self) -> str:
        return f"{self.model} x {self.dataset} x {self.method}"
