"""The backward pass of relevance propagation: what of a model is not linear passes gradients by a rule of its own.

With the rules in force a forward pass gives the numbers that it always gives; only gradients are others.

- A norm y = w (x - mean) s + b, with s(x) one over the root mean square or the standard deviation, passes gradients as
  if s were a constant. That differs from the true gradient of s by a term of rank one, which is added back: with
  n features and the gradient g on y, s^2 (x - mean) / n * sum( (y - b) g ).
- An element-wise function y = f(x) with f(0) = 0 passes gradients times y / x.
- A product of an activation and a gate passes half of the gradient to each factor: so that, as all along, the sum of
  input times gradient is the same behind every operation.

Attention passes its true gradients, to values and through its probabilities; so do soft caps.

The rules hang on the modules of the model as hooks. What nnsight reads of a module is read within them: a norm's
output, say, is read before its rule is added, and still gets the gradient of what is behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.errors import ModelError
from attrib_batch.models.load import LoadedModel

_DEFAULT_EPSILON = 1e-5
_ROUNDINGS = 256
"""A norm's answers may differ from those of its formula by so many rounding errors."""


@contextmanager
def relevance_rules(model: LoadedModel) -> Iterator[None]:
    """Have gradients follow the rules of relevance propagation, for the forward passes made within.

    Raises:
        ModelError: the model has something of its own for which there is no rule.
    """
    mlp = model.architecture.mlp
    if mlp is None:
        raise ModelError(f"there are no rules for {model.model_type}: {model.architecture.mlp_because}")
    layers = model.module.get_submodule(model.architecture.layers)
    known: dict[type, _Scale] = {}
    with ExitStack() as stack:
        for layer in layers:
            for module in layer.modules():
                if _is_norm(module):
                    stack.callback(module.register_forward_hook(_norm_rule(known)).remove)
            activation = layer.get_submodule(mlp.activation)
            stack.callback(activation.register_forward_hook(_ratio_rule).remove)
            if mlp.gated_into is not None:
                product = layer.get_submodule(mlp.gated_into)
                stack.callback(product.register_forward_pre_hook(_half_rule).remove)
        if model.architecture.final_norm:
            norm = model.module.get_submodule(model.architecture.final_norm)
            stack.callback(norm.register_forward_hook(_norm_rule(known)).remove)
        yield


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not any(True for _ in module.children())


def _norm_rule(known: dict[type, _Scale]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    """Return the hook of norms; ``known`` holds what was found of their classes."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        x = args[0]
        if not (torch.is_grad_enabled() and (x.requires_grad or output.requires_grad)):
            return None
        if type(module) not in known:
            known[type(module)] = _scale_of(module, x.detach())
        bias = getattr(module, "bias", None)
        result: Tensor = _ConstantScale.apply(x, output, bias, known[type(module)])  # type: ignore[no-untyped-call]  # torch's own
        return result

    return hook


def _ratio_rule(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    if not (torch.is_grad_enabled() and output.requires_grad):
        return None
    result: Tensor = _Ratio.apply(args[0], output.detach())  # type: ignore[no-untyped-call]  # torch's own
    return result


def _half_rule(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not (torch.is_grad_enabled() and args[0].requires_grad):
        return None
    return (_Half.apply(args[0]), *args[1:])  # type: ignore[no-untyped-call]  # torch's own


@dataclass(frozen=True)
class _Scale:
    """What a norm divides by: the root of the mean square and a constant."""

    centred: bool
    """Whether the mean is taken off first."""
    epsilon: float


def _scale_of(module: nn.Module, x: Tensor) -> _Scale:
    """Find out what a norm divides by, and that it is one.

    Args:
        module: the norm.
        x: what it is given, of any size.

    Raises:
        ModelError: it computes something else.
    """
    epsilon = next((v for name in ("eps", "variance_epsilon") if (v := getattr(module, name, None))), _DEFAULT_EPSILON)
    bias = getattr(module, "bias", None)

    def of(value: Tensor) -> Tensor:
        with torch.no_grad():
            # Past its hooks, and past nnsight.
            found = at_least_float32(type(module).forward(module, value.to(x.dtype)))
        return found if bias is None else found - bias

    wide = at_least_float32(x)
    wide = wide - wide.mean(-1, keepdim=True)
    wide = wide / wide.square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(wide.dtype).tiny)
    plain, shifted, small = of(wide), of(wide + 1), of(epsilon**0.5 * wide)
    # Many norms compute in float32 whatever the model is in.
    tolerance = _ROUNDINGS * max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps) * plain.abs().max()
    centred = bool((plain - shifted).abs().max() <= tolerance)
    # Without the mean, or with its mean square of 2, and with a mean square as large as the constant.
    size = (1 + epsilon) ** 0.5
    one = of(torch.ones_like(wide)) * size
    as_rms = shifted * (2 + epsilon) ** 0.5 - plain * size
    agrees = [(small * 2**0.5 - plain * size).abs().max() <= 4 * tolerance]
    if not centred:
        agrees.append((as_rms - one).abs().max() <= 4 * tolerance)
    if not all(agrees):
        raise ModelError(
            f"there is no rule for {type(module).__name__}, which divides by neither the root mean square nor the "
            "standard deviation of its last axis"
        )
    return _Scale(centred, float(epsilon))


class _ConstantScale(torch.autograd.Function):
    """Gives ``y``, the norm of ``x``; adds to the gradient on ``x`` what makes its scale a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor | None, scale: _Scale) -> Tensor:
        ctx.save_for_backward(x, y, bias)
        ctx.scale = scale
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (gradient,) = gradients
        if not ctx.needs_input_grad[0]:
            return None, gradient, None, None
        x, y, bias = ctx.saved_tensors
        wide, scaled = at_least_float32(x), at_least_float32(y)
        if bias is not None:
            scaled = scaled - bias
        if ctx.scale.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        mean_square = wide.square().mean(-1, keepdim=True) + ctx.scale.epsilon
        through_scale = (scaled * at_least_float32(gradient)).mean(-1, keepdim=True) / mean_square
        return (wide * through_scale).to(x.dtype), gradient, None, None


class _Ratio(torch.autograd.Function):
    """Gives ``y``, a function of ``x`` that is 0 at 0; the gradient on ``x`` is that on ``y`` times ``y / x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        x, y = ctx.saved_tensors
        zero = x == 0
        return gradient * torch.where(zero, 0.0, y / torch.where(zero, 1.0, x)).to(gradient.dtype), None


class _Half(torch.autograd.Function):
    """Gives its input, and half of the gradient."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / 2
