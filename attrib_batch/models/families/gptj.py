"""GPT-J: attention and MLP read one norm of the residual stream in parallel."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, gpt_like, layer_sites, separate


def _architecture(_config: Any) -> Architecture:
    return gpt_like(
        layer_sites(separate(attention="attn"), output="attn.out_proj", resid_mid=None),
        attention_interface=False,
        layer_gives_tuple=True,
    )


FAMILY = Family("GPT-J", ("gptj",), _architecture)
