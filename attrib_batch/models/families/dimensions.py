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


def dimensions_of(config: Any) -> Dimensions:
    """Read the sizes that a transformers configuration states."""
    n_heads = config.num_attention_heads
    return Dimensions(
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        max_tokens=config.max_position_embeddings,
    )
