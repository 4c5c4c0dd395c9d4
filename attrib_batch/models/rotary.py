"""Where the keys of a prefix do not stand for it: what follows the prefix changes them, or they are not all there is.

Under most variants a key is rotated by an angle that follows from its position, so the keys of a prefix are the same
whatever comes after it. Two variants that transformers has look at the prompt's length too (``modeling_rope_utils``):

- ``longrope`` (Ding et al. 2024, arXiv 2402.13753) uses one set of frequencies for prompts of up to
  ``original_max_position_embeddings`` tokens, and another for longer ones;
- ``dynamic`` (NTK-aware scaling) stretches the frequencies with every token beyond ``max_position_embeddings``.

There a prefix that is computed alone can have other keys than the same tokens within the whole prompt. And layers of
linear attention keep a state of the prefix, and no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrib_batch.models.families.dimensions import text_config

_BY_POSITION_ALONE = frozenset({"default", "linear", "llama3", "proportional", "yarn"})
"""Variants whose angles depend on the position alone."""


def prefix_is_reusable(config: Any, prefix: int, whole: int) -> bool:
    """Return whether the keys of a prefix, computed alone, are all that the rest of the whole prompt needs of it.

    Args:
        config: the model's transformers configuration.
        prefix: tokens of the prefix.
        whole: tokens of the prompt that begins with it.
    """
    text = text_config(config)
    return prefix in {0, whole} or (
        not keeps_a_state(text)
        and all(_same_angles(text, parameters, prefix, whole) for parameters in _rotary_parameters(text))
    )


def angles_follow_from_positions(config: Any) -> bool:
    """Return whether every position has the same angles in prompts of all lengths, which may then share a pass."""
    return all(
        parameters.get("rope_type", "default") in _BY_POSITION_ALONE
        for parameters in _rotary_parameters(text_config(config))
    )


def keeps_a_state(config: Any) -> bool:
    """Return whether layers of a model keep a state of earlier positions instead of their keys and values."""
    return "linear_attention" in (getattr(text_config(config), "layer_types", None) or ())


def _same_angles(config: Any, parameters: Mapping[str, Any], prefix: int, whole: int) -> bool:
    variant = parameters.get("rope_type", "default")
    if variant in _BY_POSITION_ALONE:
        return True
    if variant == "longrope":
        switch = parameters["original_max_position_embeddings"]
        return bool((prefix <= switch) == (whole <= switch))
    if variant == "dynamic":
        return bool(whole <= config.max_position_embeddings)
    return False  # a variant that is not known here may depend on anything


def _rotary_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of every rotary embedding of a model: one for all layers, or one for each kind of layer."""
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in parameters.values() if isinstance(value, Mapping)]
    return by_kind or ([parameters] if parameters else [])
