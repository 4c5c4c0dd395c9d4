"""OPT: norms before attention and MLP, or after them (OPT-350M).

Its MLP works on all positions of all prompts along one axis. With norms before, so does what reads the residual stream
between attention and MLP; with norms after, the stream there is what the attention's norm gives.
"""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, Mlp, Site, SiteKey, layer_sites, separate
from attrib_batch.spec import Component

_NO_RESID_MID = "its layers hold the residual stream there with the positions of all prompts on one axis"


def _architecture(config: Any) -> Architecture:
    before = config.do_layer_norm_before
    # The last output before the MLP that has prompts and positions on two axes.
    rows_as_in: SiteKey = ("self_attn" if before else "self_attn_layer_norm", "output")
    return Architecture(
        layers="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        final_norm=_final_norm(config),
        attention="self_attn",
        sites=layer_sites(
            separate(),
            output="self_attn.out_proj",
            resid_mid=None if before else Site("self_attn_layer_norm", "output"),
            mlp_out=Site("fc2", "output", rows_as_in=rows_as_in),
        ),
        plain_skip=before,
        mlp=Mlp("activation_fn"),
        reasons={Component.RESID_MID: _NO_RESID_MID},
    )


def _final_norm(config: Any) -> str:
    has_one = config.do_layer_norm_before and not config._remove_final_layer_norm
    return "model.decoder.final_layer_norm" if has_one else ""


FAMILY = Family("OPT", ("opt",), _architecture)
