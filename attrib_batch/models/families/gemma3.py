"""Gemma 3: Gemma 2 with a norm of each head's queries and keys, taken with the heads before the positions.

The larger checkpoints are multimodal (``gemma3``): their text model stands one level deeper.
"""

from __future__ import annotations

from typing import Any

from attrib_batch.models.families.base import Architecture, Family, normed_by_head, post_normed


def _architecture(config: Any) -> Architecture:
    text = post_normed(normed_by_head(heads_first=True, values_first=True))
    return text.within("model.language_model") if config.model_type == "gemma3" else text


FAMILY = Family("Gemma 3", ("gemma3_text", "gemma3"), _architecture)
