"""Check that a model's modules and tensors are what its family and its configuration say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from attrib_batch.errors import ModelError
from attrib_batch.models.families import Architecture, Dimensions, SiteKey

CHECKED_TOKENS = 4
"""How many tokens are computed to check a model's shapes."""


def check_shapes(model: nn.Module, architecture: Architecture, dimensions: Dimensions) -> None:
    """Pass a few tokens through the model and compare every site's tensor with the sizes the configuration states.

    Raises:
        ModelError: a module is missing or a shape is not what the architecture says.
    """
    import torch

    check_modules(model, architecture, dimensions)
    last = _submodule(model, architecture.layers)[-1]  # type: ignore[index]  # a ModuleList
    seen: dict[SiteKey, Float[Tensor, "1 ..."]] = {}
    handles = []
    for module, end in {site.key for site in architecture.sites.values()}:
        target = _submodule(last, module) if module else last
        if end == "input":

            def keep_input(_m: Any, args: Any, kwargs: Any, key: Any = (module, end)) -> None:
                seen[key] = _as_read(args[0] if args else kwargs["hidden_states"])

            handles.append(target.register_forward_pre_hook(keep_input, with_kwargs=True))
        else:

            def keep_output(_m: Any, _args: Any, out: Any, key: Any = (module, end)) -> None:
                seen[key] = _as_read(out)

            handles.append(target.register_forward_hook(keep_output))
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(torch.arange(CHECKED_TOKENS, device=device).unsqueeze(0), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    compare_shapes(seen, architecture, dimensions)


def _as_read(value: Any) -> Float[Tensor, "1 ..."]:
    """Return a tensor as `activation_at` does: the first of a tuple, with the one row on an axis of its own."""
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor.unsqueeze(0) if tensor.shape[0] == CHECKED_TOKENS else tensor


def check_modules(model: nn.Module, architecture: Architecture, dimensions: Dimensions) -> None:
    """Look for the modules that stand once in a model.

    Raises:
        ModelError: a module is missing, or there are more or fewer layers than the configuration states.
    """
    layers = _submodule(model, architecture.layers)
    for path in (architecture.embedding, architecture.final_norm, architecture.unembedding):
        _submodule(model, path)
    if len(layers) != dimensions.n_layers:  # type: ignore[arg-type]  # a ModuleList, which has a length
        raise ModelError(
            f"{architecture.layers} does not hold the {dimensions.n_layers} layers its configuration states"
        )


def compare_shapes(
    seen: Mapping[SiteKey, Float[Tensor, "1 ..."]], architecture: Architecture, dimensions: Dimensions
) -> None:
    """Compare the tensors at the sites of a layer, from ``CHECKED_TOKENS`` tokens, with what they must be.

    Raises:
        ModelError: a shape is not what the architecture says.
    """
    for component, site in architecture.sites.items():
        if site.key not in seen:
            raise ModelError(
                f"{component}: the model does not use its module {site.module!r}; its configuration or this "
                "transformers version lets it compute in another way"
            )
        n_heads = dimensions.heads_of(component)
        expected = (1, CHECKED_TOKENS, n_heads or 1, dimensions.head_dim if n_heads else dimensions.d_model)
        found = tuple(site.view(seen[site.key], dimensions).shape)
        if found != expected:
            raise ModelError(
                f"{component} at {site.module or 'the layer'}.{site.end} has shape {found}, expected {expected} "
                "(pair, position, head, feature); this transformers version lays the model out differently"
            )


def _submodule(model: Any, path: str) -> nn.Module:
    try:
        found: nn.Module = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"{type(model).__name__} has no module {path!r}: {error}") from error
    return found
