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

if TYPE_CHECKING:
    import torch
    from nnsight.modeling.transformers import TransformersModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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

    @property
    def model_type(self) -> str:
        """The transformers name of the architecture."""
        return str(self.module.config.model_type)


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
    from transformers import AutoConfig

    location, revision = model_files(find_model(job))
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=job.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {job.id!r}: its configuration cannot be read: {_first_line(error)}") from error
    architecture_of(config)
    return dimensions_of(config)


def load_model(job: ModelJob) -> LoadedModel:
    """Load a model as a job asks.

    Raises:
        ModelError: not found, not loadable, of an unknown architecture, or not of the shapes it states.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = find_model(job)
    location, revision = model_files(source)
    device = choose_device(job)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": job.trust_remote_code}
    try:
        # Refused before the weights are read, which may be many gigabytes.
        config = AutoConfig.from_pretrained(location, **options)
        architecture_of(config)
        module = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=getattr(torch, job.dtype),
            use_safetensors=None if job.allow_pickle else True,
            device_map="auto" if spreads_over_gpus(job) else None,
            attn_implementation=None if job.attention == "auto" else job.attention,
            **options,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model {job.id!r} cannot be loaded: {_first_line(error)}") from error
    if not spreads_over_gpus(job):
        module = module.to(device)
    return wrap_model(module, load_tokenizer(job, source))


def wrap_model(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Make a loaded transformers model ready for attribution.

    Frozen parameters save the half of a backward pass that would compute weight gradients; evaluation mode turns
    dropout off, without which identical prompts would have non-zero scores.

    Raises:
        ModelError: unknown architecture, or shapes it does not state.
    """
    from nnsight.modeling.transformers import TransformersModel

    module.eval().requires_grad_(False)
    architecture, dimensions = architecture_of(module.config), dimensions_of(module.config)
    check_shapes(module, architecture, dimensions)
    return LoadedModel(
        traced=TransformersModel(module, task="text-generation", tokenizer=tokenizer),
        module=module,
        tokenizer=tokenizer,
        architecture=architecture,
        dimensions=dimensions,
        device=module.get_input_embeddings().weight.device,
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
