"""Load a model ready for attribution: evaluation mode, frozen parameters, shapes checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import ModelError
from attrib_batch.models.architectures import (
    Architecture,
    Dimensions,
    architecture_of,
    check_shapes,
    dimensions_of,
)
from attrib_batch.models.sources import find_model
from attrib_batch.models.vocabulary import check_vocabulary

if TYPE_CHECKING:
    import torch
    from nnsight.modeling.transformers import TransformersModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from attrib_batch.models.sources import ModelSource
    from attrib_batch.spec import ModelJob


@dataclass(frozen=True)
class LoadedModel:
    """A model in this process, wrapped for tracing."""

    traced: TransformersModel
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    dimensions: Dimensions
    device: torch.device
    """Where the token ids go; with a device map the device of the embedding."""
    shards: int = 1
    """Over how many processes the weights are split; every one of them makes the same runs."""

    @property
    def model_type(self) -> str:
        """The transformers name of the architecture."""
        return str(self.module.config.model_type)

    @property
    def sharded(self) -> bool:
        """Whether this process holds only its share of the weights."""
        return self.shards > 1


def load_tokenizer(job: ModelJob, source: ModelSource | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone, in the configuration a run uses.

    Raises:
        ModelError: the model has none, or none that reports character offsets.
    """
    from transformers import AutoTokenizer

    location, revision = model_files(source or find_model(job))
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=job.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {job.id!r}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"model {job.id!r}: its tokenizer does not report character offsets, which roles need")
    return tokenizer


def read_dimensions(job: ModelJob) -> Dimensions:
    """The sizes of a model from its configuration alone.

    Raises:
        ModelError: not found, or of an unknown architecture.
    """
    return dimensions_of(read_config(job))


def read_config(job: ModelJob, source: ModelSource | None = None) -> PretrainedConfig:
    """A model's configuration, of an architecture that is known.

    Raises:
        ModelError: not found, not readable, or of an unknown architecture.
    """
    from transformers import AutoConfig

    location, revision = model_files(source or find_model(job))
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=job.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {job.id!r}: its configuration cannot be read: {_first_line(error)}") from error
    architecture_of(config)
    return config


def load_model(job: ModelJob) -> LoadedModel:
    """Load a model as a job asks.

    Raises:
        ModelError: not found, not loadable, of an unknown architecture, not of the shapes it states, or with a
            tokenizer that is not its own.
    """
    source = find_model(job)
    device = choose_device(job)
    tokenizer = load_tokenizer(job, source)
    check_vocabulary(job, tokenizer, dimensions_of(read_config(job, source)).d_vocab)
    module = load_weights(job, source, device_map="auto" if spreads_over_gpus(job) else None)
    if not spreads_over_gpus(job):
        module = module.to(device)
    return wrap_model(module, tokenizer)


def load_weights(job: ModelJob, source: ModelSource, **placement: Any) -> PreTrainedModel:
    """Load a transformers model in a job's precision; ``placement`` tells ``from_pretrained`` where it goes.

    Raises:
        ModelError: not loadable, or of an unknown architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    read_config(job, source)  # an unknown architecture is refused before its weights, maybe many gigabytes, are read
    location, revision = model_files(source)
    try:
        return AutoModelForCausalLM.from_pretrained(
            location,
            revision=revision,
            trust_remote_code=job.trust_remote_code,
            dtype=getattr(torch, job.dtype),
            use_safetensors=None if job.allow_pickle else True,
            attn_implementation=None if job.attention == "auto" else job.attention,
            **placement,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model {job.id!r} cannot be loaded: {_first_line(error)}") from error


def wrap_model(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Make a loaded transformers model ready for attribution, and check its shapes.

    Raises:
        ModelError: unknown architecture, or shapes it does not state.
    """
    check_shapes(module, architecture_of(module.config), dimensions_of(module.config))
    return prepare_tracing(module, tokenizer)


def prepare_tracing(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, shards: int = 1) -> LoadedModel:
    """Freeze a loaded transformers model and wrap it for tracing; its shapes are not checked here.

    Frozen parameters save the half of a backward pass that would compute weight gradients; evaluation mode turns
    dropout off, without which identical prompts would have non-zero scores.
    """
    from nnsight.modeling.transformers import TransformersModel

    module.eval().requires_grad_(False)
    return LoadedModel(
        traced=TransformersModel(module, task="text-generation", tokenizer=tokenizer),
        module=module,
        tokenizer=tokenizer,
        architecture=architecture_of(module.config),
        dimensions=dimensions_of(module.config),
        device=module.get_input_embeddings().weight.device,
        shards=shards,
    )


def choose_device(job: ModelJob) -> torch.device:
    """The device a job's model goes to.

    Raises:
        ModelError: a GPU is asked for and there is none.
    """
    import torch

    if job.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(job.device)
    except RuntimeError as error:
        raise ModelError(f"device {job.device!r} is not one: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {job.device!r} was asked for, but this machine offers no CUDA device")
    return device


def spreads_over_gpus(job: ModelJob) -> bool:
    """Whether one actor spreads the model over several GPUs with a device map."""
    return job.workers.gpus >= 2


def model_files(source: ModelSource) -> tuple[str, str | None]:
    """What ``from_pretrained`` is called with: a folder or repository id, and a revision."""
    if source.kind == "bundled":
        from attrib_batch.models.bundled import bundled_folder

        return str(bundled_folder(source)), None
    return source.location, source.revision


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
