"""One model over several processes: loading one process's share of it.

The weights are split by transformers' tensor parallelism: every process holds its share of the attention heads, the MLP
width and the vocabulary. ``ranks`` joins the processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import ModelError, ShardGroupError
from attrib_batch.models.activations import activation_at
from attrib_batch.models.checks.causality import check_prefixes
from attrib_batch.models.checks.shapes import CHECKED_TOKENS, check_modules, compare_shapes
from attrib_batch.models.checks.vocabulary import check_vocabulary
from attrib_batch.models.devices import choose_device
from attrib_batch.models.families import architecture_of, dimensions_of
from attrib_batch.models.load import (
    load_tokenizer,
    load_weights,
    prepare_tracing,
    read_config,
)
from attrib_batch.models.sources import find_model

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from transformers import PretrainedConfig

    from attrib_batch.models.families import SiteKey
    from attrib_batch.models.load import LoadedModel
    from attrib_batch.spec import ModelSpec


def check_degree(spec: ModelSpec, config: PretrainedConfig, shards: int) -> None:
    """Refuse a number of shards that a model cannot be split into, by its configuration.

    Raises:
        ModelError: naming the numbers that are possible, or what to do with a model that cannot be split at all.
    """
    from nnsight.modeling.tp import SIDES, max_tp_size

    most = max_tp_size(config)
    whole_because = architecture_of(config).whole_because
    if most is None or whole_because is not None:
        plan = getattr(config, "base_model_tp_plan", None) or {}
        if whole_because is not None:
            reason = whole_because
        elif not plan:
            reason = f"{config.model_type} has no tensor-parallel plan in transformers"
        elif unknown := sorted(set(plan.values()) - SIDES.keys()):
            reason = f"its tensor-parallel plan uses {', '.join(unknown)}, whose activations nnsight cannot gather"
        else:
            reason = f"{_divided_sizes(config)} have no common divisor"
        raise ModelError(
            f"model {spec.id!r} cannot be split into shards: {reason}. Use workers of kind replica; "
            "with gpus 2 or more, each spreads the layers over that many GPUs"
        )
    possible = [degree for degree in range(2, most + 1) if most % degree == 0]
    if shards not in possible:
        raise ModelError(
            f"model {spec.id!r} cannot be split into {shards} shards: the number must be 2 or more and divide "
            f"{_divided_sizes(config)}; possible: {', '.join(map(str, possible))}"
        )


def load_shard(spec: ModelSpec, shards: int, *, gpus: float | None = None) -> LoadedModel:
    """Load this rank's share of a model as a job asks, after ``join_ranks``; every rank must call this.

    Args:
        spec: the model's part of the job.
        shards: how many ranks there are.
        gpus: how many GPUs this process was given; None where nobody gives them out.

    Raises:
        ModelError: not found, not loadable, of an unknown architecture, not divisible so, not of the shapes it states,
            looks ahead, has a tokenizer that is not its own, or is asked for on a device that shards cannot be put on.
        ShardGroupError: the ranks that were joined are not ``shards``.
    """
    import torch.distributed
    from transformers.distributed import DistributedConfig

    source = find_model(spec)
    config = read_config(spec, source)
    check_degree(spec, config, shards)
    _check_device(spec, gpus)
    tokenizer = load_tokenizer(spec, source)
    check_vocabulary(spec, tokenizer, dimensions_of(config).d_vocab)
    n_ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0
    if n_ranks != shards:
        raise ShardGroupError(f"model {spec.id!r} is to be split into {shards} shards, but {n_ranks} ranks were joined")
    # The plan transformers has for the model, with the embedding always split over the vocabulary: an unembedding that
    # is split cannot be tied to an embedding that is not.
    plan = DistributedConfig(tp_size=shards, tp_plan={architecture_of(config).embedding: "embedding_rowwise"})
    module = load_weights(spec, source, distributed_config=plan)
    model = prepare_tracing(module, tokenizer, shards=shards)
    _check_shapes(model)
    check_prefixes(model.module, model.device)
    return model


def parameters_here(model: LoadedModel) -> int:
    """Return how many parameters this process holds, those that other ranks hold too included."""
    from torch.distributed.tensor import DTensor

    return sum(
        (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
        for parameter in model.module.parameters()
    )


def _check_shapes(model: LoadedModel) -> None:
    """Compute a few tokens and compare every site's tensor, as a trace shows it, with the sizes of the whole model.

    Raises:
        ModelError: a module is missing or a shape is not what the architecture says.
    """
    import torch

    check_modules(model.module, model.architecture, model.dimensions)
    ids = torch.arange(CHECKED_TOKENS, device=model.device).unsqueeze(0)
    seen: dict[SiteKey, Float[torch.Tensor, "1 ..."]] = {}
    with torch.no_grad(), model.traced.trace(input_ids=ids, use_cache=False) as tracer:
        last = model.traced.get(model.architecture.layers)[-1]
        for site in {site.key: site for site in model.architecture.sites.values()}.values():
            seen[site.key] = activation_at(model, last, site)
        tracer.stop()
    compare_shapes(seen, model.architecture, model.dimensions)


def _check_device(spec: ModelSpec, gpus: float | None) -> None:
    """Refuse a device that is not the one transformers puts shards on: the only GPU, or the CPU where there is none.

    Raises:
        ModelError: naming the device and what to do.
    """
    import torch

    if spec.device.startswith("cuda:") and spec.device != "cuda:0":
        raise ModelError(f"device {spec.device!r}: a shard takes the only GPU its worker sees; use auto, cpu or cuda")
    device = choose_device(spec, gpus=gpus)
    offered = "cuda" if torch.cuda.is_available() else "cpu"
    if device.type != offered:
        raise ModelError(
            f"device {spec.device!r}: shards go to {offered} in this process; use device auto"
            + (", and gpus: 0 for the CPU" if offered == "cuda" else "")
        )


def _divided_sizes(config: PretrainedConfig) -> str:
    """Return the sizes that a number of shards must divide, in words."""
    sizes = {
        "attention heads": getattr(config, "num_attention_heads", None),
        "key/value heads": getattr(config, "num_key_value_heads", None),
        "MLP width": getattr(config, "intermediate_size", None),
    }
    return ", ".join(f"{name} ({size})" for name, size in sizes.items() if size)
