"""Load a model ready for attribution: evaluation mode, frozen parameters, shapes checked."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import ModelError
from attrib_batch.models.checks.capabilities import check_config
from attrib_batch.models.checks.causality import check_prefixes
from attrib_batch.models.checks.shapes import check_shapes
from attrib_batch.models.checks.vocabulary import check_vocabulary
from attrib_batch.models.devices import check_placement, choose_device, spreads_over_gpus, take_memory_share
from attrib_batch.models.families import Architecture, Dimensions, architecture_of, dimensions_of
from attrib_batch.models.sources import find_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from nnsight.modeling.transformers import TransformersModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from attrib_batch.models.sources import ModelSource
    from attrib_batch.spec import ModelSpec


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
    """Over how many processes the weights are split; every one of them computes the same forward passes."""
    may_replace_attention: bool = True
    """Whether attention may be computed by a function of this package: not on a server, whose model it is."""
    memory_share: float = 1.0
    """Which share of the device's memory this process may use; below 1 where others use the same device."""

    @property
    def model_type(self) -> str:
        """The transformers name of the architecture."""
        return str(self.module.config.model_type)

    @property
    def sharded(self) -> bool:
        """Whether this process holds only its share of the weights."""
        return self.shards > 1


def load_tokenizer(spec: ModelSpec, source: ModelSource | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone, in the configuration a run uses.

    Raises:
        ModelError: the model has none, or none that reports character offsets.
    """
    from transformers import AutoTokenizer

    location, revision = model_files(source or find_model(spec))
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # for a file that they cannot parse, these libraries raise anything: KeyError, Exception
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"model {spec.id!r}: its tokenizer cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"model {spec.id!r}: its tokenizer does not report character offsets, which roles need")
    return tokenizer


def read_dimensions(spec: ModelSpec) -> Dimensions:
    """Read the sizes of a model from its configuration alone.

    Raises:
        ModelError: not found, or of an unknown architecture.
    """
    return dimensions_of(read_config(spec))


def read_config(spec: ModelSpec, source: ModelSource | None = None) -> PretrainedConfig:
    """Read a model's configuration, and check that a model like this can be attributed.

    Raises:
        ModelError: not found, not readable, or of a kind that `check_config` refuses.
    """
    from transformers import AutoConfig

    location, revision = model_files(source or find_model(spec))
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {spec.id!r}: its configuration cannot be read: {_first_line(error)}") from error
    check_config(spec, config)
    return config


def load_model(spec: ModelSpec, *, gpus: float | None = None) -> LoadedModel:
    """Load a model as a job asks.

    Args:
        spec: the model's part of the job.
        gpus: how many GPUs this process was given; None where nobody gives them out.

    Raises:
        ModelError: not found, not loadable, of an unknown architecture, not of the shapes it states, with a tokenizer
            that is not its own, or too large for the GPUs that it is to be spread over.
    """
    source = find_model(spec)
    device = choose_device(spec, gpus=gpus)
    share = take_memory_share(device, gpus)
    tokenizer = load_tokenizer(spec, source)
    check_vocabulary(spec, tokenizer, dimensions_of(read_config(spec, source)).d_vocab)
    if spreads_over_gpus(spec):
        module = load_weights(spec, source, device_map="auto")
        check_placement(spec, module)
    elif device.type == "cuda":
        # Straight to the card: a model need not fit into the host's memory, and is not copied there first.
        module = load_weights(spec, source, device_map={"": device})
    else:
        module = load_weights(spec, source, device_map=None).to(device)
    return replace(wrap_model(module, tokenizer), memory_share=share)


def load_weights(spec: ModelSpec, source: ModelSource, **placement: Any) -> PreTrainedModel:
    """Load a transformers model in a job's precision; ``placement`` tells ``from_pretrained`` where it goes.

    Raises:
        ModelError: not loadable: asking again would give the same answer. Whatever else is raised may be of the moment.
    """
    import torch
    from safetensors import SafetensorError

    # What cannot be attributed is refused before its weights, maybe many gigabytes, are read.
    config = read_config(spec, source)
    location, revision = model_files(source)
    try:
        with _without_progress_bar():
            return _auto_class(config).from_pretrained(
                location,
                revision=revision,
                trust_remote_code=spec.trust_remote_code,
                dtype=getattr(torch, spec.dtype),
                use_safetensors=None if spec.allow_pickle else True,
                attn_implementation=None if spec.attention == "auto" else spec.attention,
                **placement,
            )
    except ImportError as error:
        raise ModelError(
            f"model {spec.id!r} cannot be loaded: a package is missing ({' '.join(str(error).split())}). Install it "
            "where the workers run"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model {spec.id!r} cannot be loaded: {_first_line(error)}") from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ModelError(
            f"model {spec.id!r} cannot be loaded: its weights are not of the sizes that its configuration states "
            f"({_first_line(error)})"
        ) from error


def _auto_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers that loads a model of this configuration with its unembedding."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    # Some multimodal models are known under one name, some under both.
    kind = type(config)
    multimodal = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if multimodal else AutoModelForCausalLM


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a progress bar of its own across the run's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def wrap_model(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Make a loaded transformers model ready for attribution, and check its shapes and that it is causal.

    Raises:
        ModelError: unknown architecture, shapes it does not state, or attention that looks ahead.
    """
    module.eval()
    check_shapes(module, architecture_of(module.config), dimensions_of(module.config))
    check_prefixes(module, module.get_input_embeddings().weight.device)
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


def model_files(source: ModelSource) -> tuple[str, str | None]:
    """Return what ``from_pretrained`` is called with: a folder or repository id, and a revision."""
    if source.kind == "bundled":
        from attrib_batch.models.bundled import bundled_folder

        return str(bundled_folder(source)), None
    return source.location, source.revision


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
