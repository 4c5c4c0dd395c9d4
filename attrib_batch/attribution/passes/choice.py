"""Choose how a model's suffixes are passed: packed where its attention can be replaced, padded otherwise."""

from __future__ import annotations

from attrib_batch.attribution.passes.base import Passes
from attrib_batch.attribution.passes.padded import PaddedPasses
from attrib_batch.models.load import LoadedModel


def passes_for(model: LoadedModel) -> Passes:
    """Return the passes that suit a model."""
    if model.may_replace_attention:
        # Imported here: what is imported above travels to servers, and neither this nor what it needs is of use there.
        from attrib_batch.attribution.passes.fitness import may_pack
        from attrib_batch.attribution.passes.packed import PackedPasses

        if may_pack(model):
            return PackedPasses(model)
    return PaddedPasses(model)
