"""Cohere Command: attention and MLP read one norm of the residual stream in parallel; R+ norms queries and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attrib_batch.models.families.base import Architecture, Family, layer_sites, llama_like, normed_by_head, separate

_UNSPLIT_NORM = "the plan splits the heads and not their norms (use_qk_norm)"


def _architecture(config: Any) -> Architecture:
    normed = getattr(config, "use_qk_norm", False)
    sites = layer_sites(normed_by_head(values_first=True) if normed else separate(), resid_mid=None)
    return replace(llama_like(sites), whole_because=_UNSPLIT_NORM if normed else None)


FAMILY = Family("Cohere", ("cohere", "cohere2"), _architecture)
