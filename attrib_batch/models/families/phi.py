"""Phi: attention and MLP read the same residual stream in parallel; with or without a norm of queries and keys."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import (
    Architecture,
    Family,
    Mlp,
    layer_sites,
    llama_like,
    normed_by_head,
    separate,
)


def _architecture(config: Any) -> Architecture:
    normed = normed_by_head("q_layernorm", "k_layernorm", heads_first=True, values_first=True)
    projections = normed if config.qk_layernorm else separate()
    return llama_like(
        layer_sites(projections, output="self_attn.dense", resid_mid=None),
        final_norm="model.final_layernorm",
        mlp=Mlp("mlp.activation_fn"),
    )


FAMILY = Family("Phi", ("phi",), _architecture)
