"""A model that a caller has loaded already: as transformers gives it, or wrapped by nnsight."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import ModelError
from attrib_batch.models.load import LoadedModel, wrap_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def adopt_model(model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> LoadedModel:
    """Make a model that is in memory ready for attribution; it stays where it is.

    It is put into evaluation mode and its parameters are frozen, as `wrap_model` does.

    Args:
        model: a ``transformers`` model, or an nnsight model.
        tokenizer: its tokenizer; an nnsight model has its own.

    Raises:
        ModelError: it is neither, there is no tokenizer, or it cannot be attributed.
    """
    from nnsight.modeling.transformers import TransformersModel
    from transformers import PreTrainedModel

    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, TransformersModel):
        module, tokenizer = model._module, tokenizer or model.tokenizer
    else:
        module = model
    if not isinstance(module, PreTrainedModel):
        raise ModelError(
            f"model: expected a name, a folder, a transformers model or an nnsight model, not a {type(model).__name__}"
        )
    if any(parameter.is_meta for parameter in module.parameters()):
        raise ModelError("model: its weights are not loaded (nnsight: dispatch=True loads them)")
    if tokenizer is None:
        raise ModelError("model: pass its tokenizer too, tokenizer=AutoTokenizer.from_pretrained(...)")
    if not tokenizer.is_fast:
        raise ModelError("model: its tokenizer does not report character offsets, which roles need; use a fast one")
    return wrap_model(module, tokenizer)


def weights_fingerprint(module: PreTrainedModel) -> str:
    """Return a hash of a model's configuration and weights, as they are in memory."""
    import torch

    digest = hashlib.blake2b(digest_size=32)
    config = module.config.to_dict()
    digest.update(repr(sorted((key, str(config[key])) for key in config if not key.startswith("_"))).encode())
    for name, values in sorted(module.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        flat = values.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return f"blake2b:{digest.hexdigest()}"
