"""GPT-Neo: global attention and attention to the last few positions in turns, by a mask of the attention's own."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, gpt_like, layer_sites, separate


def _architecture(_config: Any) -> Architecture:
    return gpt_like(
        layer_sites(separate(attention="attn.attention"), output="attn.attention.out_proj", resid_mid="ln_2"),
        attention_interface=False,
        layer_gives_tuple=True,
    )


FAMILY = Family("GPT-Neo", ("gpt_neo",), _architecture)
