"""What a model can be asked for, known from its configuration alone: before a worker starts or a weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.errors import ModelError
from attrib_batch.models.families import architecture_of, dimensions_of, text_config
from attrib_batch.models.rotary import keeps_a_state
from attrib_batch.spec.registries.methods import method_entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.spec import MethodSpec, ModelSpec

_LOOKS_AHEAD = {"is_causal": False, "use_bidirectional_attention": True}
"""Keys of a configuration, and the value with which attention sees later positions."""

_PACKAGES = {
    "aqlm": "aqlm",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fp_quant": "fp_quant",
    "gptq": "gptqmodel",
    "higgs": "flute-kernel",
    "hqq": "hqq",
    "mxfp4": "kernels",
    "nvfp4": "kernels",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "spqr": "spqr_quant",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""The package by which transformers reads weights of a quantisation scheme, where it needs one."""


def check_config(spec: ModelSpec, config: Any) -> None:
    """Check that a model is of a kind that can be attributed.

    Args:
        spec: the model as the job names it.
        config: its transformers configuration.

    Raises:
        ModelError: its architecture is not known, its attention looks ahead, or its weights are quantised.
    """
    try:
        architecture_of(config)
    except ModelError as error:
        raise ModelError(f"model {spec.id!r}: {error}") from error
    for key, value in _LOOKS_AHEAD.items():
        if getattr(text_config(config), key, None) is value:
            raise ModelError(
                f"model {spec.id!r}: its configuration says {key}: {str(value).lower()}, so its attention sees later "
                "positions; scores are computed for causal attention alone. Choose a causal model"
            )
    quantised = getattr(config, "quantization_config", None)
    # A model on an NDIF server is loaded there, by whatever the server has for it.
    if quantised and spec.workers.kind != "ndif":
        scheme = _scheme(quantised)
        package = f" (transformers reads them with the package {_PACKAGES[scheme]})" if scheme in _PACKAGES else ""
        raise ModelError(
            f"model {spec.id!r}: its weights are quantised, quantization_config says {scheme}{package}; scores are "
            "computed from full weights alone. Name the model they were made from, or a copy with full weights, with "
            "dtype float32 or bfloat16"
        )


def check_methods(spec: ModelSpec, config: Any, methods: Iterable[MethodSpec]) -> None:
    """Check that a model has what methods ask of it.

    Args:
        spec: the model as the job names it.
        config: its transformers configuration.
        methods: the methods.

    Raises:
        ModelError: naming the model, the method, what is missing and what there is.
    """
    architecture = architecture_of(config)
    for method in methods:
        where = f"model {spec.name or spec.id!r}, method {method.id!r}"
        for component in method.components:
            if component not in architecture.sites:
                raise ModelError(f"{where}: {architecture.missing(component, config.model_type)}")
        check_layers(method, dimensions_of(config).n_layers, where=where)
        entry = method_entry(method.kind)
        hidden = entry.reads_attention_for & set(method.components)
        if hidden and (why := _hides_attention(spec, config)):
            names = " and ".join(component for component in method.components if component in hidden)
            raise ModelError(
                f"{where}: {method.kind} cannot read the attention of this model for {names}, which computes it in a "
                f"way of its own {why}"
            )
        if entry.passes_by_skip_connections and not architecture.plain_skip:
            raise ModelError(
                f"{where}: {method.kind} lets gradients pass a layer by its skip connection alone, and layers of this "
                f"{config.model_type} model normalise the residual stream itself. Use atp or atp_ig"
            )
        if entry.replaces_gradients_of_mlps and architecture.mlp is None:
            raise ModelError(
                f"{where}: {method.kind} has no rules for {config.model_type}: {architecture.mlp_because}. Use atp or "
                "atp_ig"
            )
        if entry.second_derivatives and spec.workers.kind == "sharded":
            raise ModelError(
                f"{where}: {method.kind} differentiates gradients, and those of a model that is split over processes "
                "cannot be differentiated: what its processes exchange has no second derivative. Use workers of kind "
                "replica, or atp_ig"
            )
        if entry.begins_within_prompts:
            _check_keys(config, where=where, what=method.kind, instead="Use atp or atp_ig")


def check_verification(spec: ModelSpec, config: Any) -> None:
    """Check that activation patching can be done on a model, for a verification.

    Raises:
        ModelError: it cannot.
    """
    where = f"model {spec.name or spec.id!r}, verify"
    _check_keys(config, where=where, what="what it measures", instead="Leave out verify")


def _check_keys(config: Any, *, where: str, what: str, instead: str) -> None:
    if keeps_a_state(config):
        raise ModelError(
            f"{where}: {what} begins at the position that is replaced, from the keys of those before it; layers of "
            f"{config.model_type} with linear attention keep a state instead. {instead}"
        )


def check_layers(method: MethodSpec, n_layers: int, *, where: str) -> None:
    """Check that a model has as many layers as a method needs.

    Args:
        method: the method.
        n_layers: the model's.
        where: what the message begins with.

    Raises:
        ModelError: it has fewer.
    """
    entry = method_entry(method.kind)
    if n_layers < entry.least_layers:
        reason = f": {entry.least_layers_reason}" if entry.least_layers_reason else ""
        raise ModelError(
            f"{where}: {method.kind} needs a model of {entry.least_layers} layers or more, and this one has "
            f"{n_layers}{reason}"
        )


def _hides_attention(spec: ModelSpec, config: Any) -> str:
    """Say how attention is computed outside the function that transformers has for it, and what helps; else nothing."""
    # A configuration may have asked for eager attention itself (output_attentions does).
    eager = "eager" in {spec.attention, getattr(config, "_attn_implementation", None)}
    if eager and getattr(config, "reorder_and_upcast_attn", False):
        return "(reorder_and_upcast_attn with attention: eager). Set attention: sdpa"
    if not architecture_of(config).attention_interface:
        return f"({config.model_type} does not use transformers' attention functions). Use atp, or exact"
    return ""


def _scheme(quantised: Any) -> str:
    found = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    return str(getattr(found, "value", found) or "an unknown scheme")
