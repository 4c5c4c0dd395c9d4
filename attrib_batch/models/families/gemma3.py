"""Gemma 3: Gemma 2 with a norm of each head's queries and keys, taken with the heads before the positions."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, Projections, Site, post_normed
from attrib_batch.models.families.views import flat, split_heads_first


def _architecture(_config: Any) -> Architecture:
    return post_normed(
        Projections(
            q=Site("self_attn.q_norm", "output", split_heads_first, head_axis=1),
            k=Site("self_attn.k_norm", "output", split_heads_first, head_axis=1),
            v=Site("self_attn.v_proj", "output", flat),
            values_first=True,
        )
    )


FAMILY = Family("Gemma 3", ("gemma3_text",), _architecture)
