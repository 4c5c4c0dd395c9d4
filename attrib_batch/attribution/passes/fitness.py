"""Find out whether suffixes of a model can be packed: whether its attention can be replaced."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from attrib_batch.attribution.batches import Row
from attrib_batch.attribution.passes.packed import NotHandedOnError, PackedPasses
from attrib_batch.models.checks.causality import LEAST_TOLERANCE, ROUNDINGS
from attrib_batch.models.families.dimensions import text_config
from attrib_batch.models.load import LoadedModel
from attrib_batch.models.rotary import angles_follow_from_positions

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

_LAYERS = {"full_attention", "sliding_attention"}
"""The kinds of attention that `cascade` computes."""
_PROMPTS = ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 5), (0, 1, 2, 3, 6, 4))
"""Made-up prompts of several lengths, as numbers of tokens spread over the vocabulary; they begin alike."""
_PREFIX = 4

_packs: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""What was found of models, so that each is tried once."""


def may_pack(model: LoadedModel) -> bool:
    """Return whether suffixes of a model can be packed; a model is tried once."""
    if model.module not in _packs:
        reason = why_not_packed(model)
        if reason:
            log.info("%s: suffixes are padded, with a copy of their prefix each: %s", model.model_type, reason)
        _packs[model.module] = not reason
    return _packs[model.module]


def why_not_packed(model: LoadedModel) -> str | None:
    """Return why suffixes of a model cannot be packed; None if they can."""
    config = text_config(model.module.config)
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    most = max(map(max, _PROMPTS))
    reasons = {
        "it computes attention in a way of its own": not model.architecture.attention_interface,
        "it finds the positions of tokens itself": not model.architecture.takes_position_ids,
        "its rotary embedding depends on the length of the prompt": not angles_follow_from_positions(config),
        f"it has layers of kind {', '.join(odd)}": odd,
        "it is too small to be tried": model.dimensions.max_tokens < max(map(len, _PROMPTS))
        or model.dimensions.d_vocab <= most,
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        return reason
    try:
        return _try(model)
    except NotHandedOnError:
        return "its layers do not hand on to attention what a call is given"
    except Exception as error:  # noqa: BLE001 - whatever a model raises at an argument that it does not know
        return f"{type(error).__name__}: {error}"


def _try(model: LoadedModel) -> str | None:
    """Pass made-up prompts packed and one by one as they are, and compare what comes out."""
    step = model.dimensions.d_vocab // (max(map(max, _PROMPTS)) + 1)
    prompts = [tuple(number * step for number in prompt) for prompt in _PROMPTS]
    passes = PackedPasses(model)
    layout = passes.layout([Row(prompt, _PREFIX) for prompt in prompts])
    packed = passes.forward(layout, [], graph=False).logits.double().cpu()
    if passes.windows != (expected := _windows(text_config(model.module.config), model.dimensions.n_layers)):
        return f"its attention is not told of its windows: {passes.windows}, expected {expected}"
    with torch.no_grad():
        whole = torch.cat(
            [
                model.module(torch.tensor([prompt], device=model.device), use_cache=False).logits[:, -1].double().cpu()
                for prompt in prompts
            ]
        )
    error = ((packed - whole).norm() / (whole - whole.mean(-1, keepdim=True)).norm()).item()
    if not error <= max(LEAST_TOLERANCE, ROUNDINGS * torch.finfo(model.module.dtype).eps):
        return f"its logits differ by {error:.2g} from those of prompts one by one"
    return None


def _windows(config: Any, n_layers: int) -> list[int | None]:
    """Return how many positions each layer sees, as its configuration says."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
