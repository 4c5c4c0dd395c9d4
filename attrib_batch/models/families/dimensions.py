"""The sizes of a model, as its configuration states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attrib_batch.spec import Component


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a model that scores depend on."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_vocab: int
    max_tokens: int

    def heads_of(self, component: Component) -> int | None:
        """Return how many heads the component is split into; None where it is not."""
        if not component.has_heads:
            return None
        return self.n_kv_heads if component in {Component.K, Component.V} else self.n_heads


def text_config(config: Any) -> Any:
    """Return the configuration of a model's text model: a part of a multimodal one, or the configuration itself."""
    return getattr(config, "text_config", None) or config
