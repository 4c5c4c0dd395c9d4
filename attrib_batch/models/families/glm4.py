"""GLM-4 (0414): norms before and after attention and MLP."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import GATED_IN_ONE, Architecture, Family, post_normed, separate


def _architecture(_config: Any) -> Architecture:
    return post_normed(
        separate(),
        attn_out="post_self_attn_layernorm",
        resid_mid="post_attention_layernorm",
        mlp_out="post_mlp_layernorm",
        mlp=GATED_IN_ONE,
    )


FAMILY = Family("GLM-4", ("glm4",), _architecture)
