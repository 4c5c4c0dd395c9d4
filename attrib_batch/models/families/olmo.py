"""OLMo: Llama without weights in its norms; some checkpoints clip queries, keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attrib_batch.models.families.base import (
    CHANGED_IN_PLACE,
    Architecture,
    Family,
    layer_sites,
    llama_like,
    separate,
)


def _architecture(config: Any) -> Architecture:
    clipped = {} if config.clip_qkv is None else {"changed_later": True, "bound": config.clip_qkv}
    sites = layer_sites(separate(**clipped), resid_mid="post_attention_layernorm")
    return replace(llama_like(sites), whole_because=CHANGED_IN_PLACE if clipped else None)


FAMILY = Family("OLMo", ("olmo",), _architecture)
