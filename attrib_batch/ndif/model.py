"""A model that an NDIF server holds: its structure, tokenizer and name are here, its weights are not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError
from attrib_batch.models.checks.capabilities import check_config
from attrib_batch.models.checks.vocabulary import check_vocabulary
from attrib_batch.models.families import Architecture, Dimensions, architecture_of, dimensions_of
from attrib_batch.models.load import load_tokenizer, model_files
from attrib_batch.models.sources import find_model
from attrib_batch.storage.hub import hub_errors

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformers import PreTrainedTokenizerBase

    from attrib_batch.models.sources import ModelSource
    from attrib_batch.spec import ModelSpec

TASK = "text-generation"


@dataclass(frozen=True)
class RemoteModel:
    """What a session with a server needs of a model."""

    traced: TransformersModel
    """Without weights: it names places in a request."""
    key: str
    """What the server knows the model by."""
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    dimensions: Dimensions


def open_remote_model(spec: ModelSpec) -> RemoteModel:
    """Build a model's structure from its configuration, and its tokenizer.

    Raises:
        ModelError: not found, of an unknown architecture, or with a tokenizer that is not its own.
    """
    from nnsight.modeling.transformers import TransformersModel

    source = find_model(spec)
    location, revision = model_files(source)
    attention = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    try:
        traced = TransformersModel(
            location, task=TASK, revision=revision, trust_remote_code=spec.trust_remote_code, **attention
        )
    except (OSError, ValueError, ImportError) as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {spec.id!r}: its structure cannot be built: {message}") from error
    config = traced._module.config
    check_config(spec, config)
    dimensions = dimensions_of(config)
    tokenizer = load_tokenizer(spec, source)
    check_vocabulary(spec, tokenizer, dimensions.d_vocab)
    return RemoteModel(
        traced=traced,
        key=_key(spec, source, location),
        tokenizer=tokenizer,
        architecture=architecture_of(config),
        dimensions=dimensions,
    )


def _key(spec: ModelSpec, source: ModelSource, location: str) -> str:
    """Build the server's name of a model, as nnsight writes it.

    The revision is the job's own, not the commit it stands for today: a server that deployed a branch knows it by the
    branch. nnsight's own function would ask the Hub for a folder, too.
    """
    name = location if source.kind != "hub" else _canonical(spec)
    data: dict[str, object] = {"repo_id": name, "revision": spec.revision}
    if spec.trust_remote_code:
        data["trust_remote_code"] = True
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps({**data, 'task': TASK})}"


def _canonical(spec: ModelSpec) -> str:
    """Return a repository's name as the Hub spells it; the job's own spelling where the Hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(spec.id).id)
    except hub_errors():
        return spec.id
