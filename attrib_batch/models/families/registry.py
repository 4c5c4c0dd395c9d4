"""The registry of model families, by the ``model_type`` of their transformers configurations, and a model's sizes.

A family of one's own is a function that an installed package offers in the entry-point group ``attrib_batch.families``,
under the ``model_type``: it takes the configuration and returns an `Architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrib_batch.errors import JobError, ModelError
from attrib_batch.models.families import (
    bloom,
    cohere,
    falcon,
    gemma2,
    gemma3,
    glm4,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    llama4,
    olmo,
    olmo2,
    opt,
    phi,
    phi3,
    qwen3,
    qwen3_next,
    stablelm,
)
from attrib_batch.models.families.base import Architecture, Family
from attrib_batch.models.families.dimensions import Dimensions, text_config
from attrib_batch.spec.registries.entry_points import load_offered, offered

FAMILY_GROUP = "attrib_batch.families"
"""The entry-point group in which an installed package offers families of its own, by ``model_type``."""

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        model_type: module.FAMILY
        for module in (
            bloom,
            cohere,
            falcon,
            gemma2,
            gemma3,
            glm4,
            gpt2,
            gpt_neo,
            gpt_neox,
            gptj,
            llama,
            llama4,
            olmo,
            olmo2,
            opt,
            phi,
            phi3,
            qwen3,
            qwen3_next,
            stablelm,
        )
        for model_type in module.FAMILY.model_types
    }
)
"""The built-in families, by ``model_type``."""


def known_model_types() -> list[str]:
    """Return every ``model_type`` that can be attributed, in alphabetical order."""
    return sorted(FAMILIES.keys() | offered(FAMILY_GROUP).keys())


NO_LIMIT = 2**31 - 1
"""The largest position that tables can hold: the longest prompt of a model that states no limit (ALiBi has none)."""


def dimensions_of(config: Any) -> Dimensions:
    """Read the sizes that a transformers configuration states; those of its text model, where it has several models."""
    text = text_config(config)
    n_heads = text.num_attention_heads
    n_kv_heads = architecture_of(config).n_kv_heads or getattr(text, "num_key_value_heads", None) or n_heads
    return Dimensions(
        n_layers=text.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // n_heads,
        d_model=text.hidden_size,
        d_vocab=text.vocab_size,
        max_tokens=getattr(text, "max_position_embeddings", None) or getattr(text, "seq_length", None) or NO_LIMIT,
    )


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a model by its transformers configuration.

    Raises:
        ModelError: naming the families that are known; or an installed package offers the family, and it cannot be
            used.
    """
    if (family := FAMILIES.get(config.model_type)) is not None:
        return family.architecture(config)
    # Packages are searched only for a family that is not built in: it reads the metadata of all of them.
    if config.model_type not in offered(FAMILY_GROUP):
        raise ModelError(f"architecture {config.model_type!r} is not known; known: {', '.join(known_model_types())}")
    return _own_architecture(config)


def _own_architecture(config: Any) -> Architecture:
    try:
        build, reference = load_offered(FAMILY_GROUP, config.model_type, "architecture")
    except JobError as error:
        raise ModelError(str(error)) from error
    try:
        architecture = build(config)
    except Exception as error:  # as its author's code, it may raise anything
        raise ModelError(
            f"architecture {config.model_type!r}: {reference} raises {type(error).__name__}: {error}"
        ) from error
    if not isinstance(architecture, Architecture):
        raise ModelError(
            f"architecture {config.model_type!r}: {reference} returns a {type(architecture).__name__}, expected an "
            f"{Architecture.__name__} of {Architecture.__module__}"
        )
    return architecture
