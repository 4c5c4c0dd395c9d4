"""OLMo 2 and 3: norms after attention and MLP, none before; queries and keys are normalised over all heads at once."""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, post_normed, separate


def _architecture(_config: Any) -> Architecture:
    return post_normed(separate("q_norm", "k_norm"), resid_mid="mlp")


FAMILY = Family("OLMo 2", ("olmo2", "olmo3"), _architecture)
