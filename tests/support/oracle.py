"""An independent, slow computation of every score, to compare the package's with.

Plain torch: forward hooks, ``torch.autograd``, one pair at a time, the whole sequence, no key/value cache.
It shares no code with the package; where the package is fast, this is literal.

For a pair (base run, other run) a score estimates, or for ``exact`` measures, what the metric gains when one
activation of the base run is replaced by the other run's. ``denoise``: the base is the corrupted run, the
other the clean one. ``noise``: the mirror.

Every result is an array over [layer, head, position]; the head axis has size 1 for components without heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tests.support.hooked_run import (
    QKV,
    Patch,
    Run,
    by_head,
    component_names,
    n_layers,
    patched_logits,
    run,
    to_query_heads,
)
from tests.support.metrics import kl, log_prob, logit_diff, prob_diff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from tests.support.metrics import Metric

    Scores = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]

__all__ = [
    "atp",
    "atp_hvp",
    "atp_ig",
    "atp_star",
    "component_names",
    "embedding_completeness",
    "exact",
    "kl",
    "log_prob",
    "logit_diff",
    "mean",
    "prob_diff",
    "zeros",
]

Direction = Literal["denoise", "noise"]
RESIDUAL_STREAM = ("resid_pre", "resid_mid", "resid_post")


def atp(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    components: Sequence[str],
    *,
    direction: Direction,
    other: Run | None = None,
) -> dict[str, Scores]:
    """Attribution patching (Nanda 2022): the base run's gradient times (other minus base), over features.

    Args:
        other: what activations are replaced by, in place of a run of the other prompt; so below too.
    """
    own = any(name in QKV for name in components)
    base_ids, other_ids = _base_and_other(clean_ids, corrupted_ids, direction)
    base = run(model, base_ids, own_attention=own)
    other = other or run(model, other_ids, own_attention=own)
    return _first_order(model, base, other, _wanted_gradients(metric_fn, base, components), components)


def atp_ig(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    components: Sequence[str],
    *,
    direction: Direction,
    ig_steps: int,
) -> dict[str, Scores]:
    """Integrated gradients over the input embeddings (Sundararajan et al. 2017; Hanna et al. 2024, "EAP-IG").

    The gradient on each activation is averaged over ``ig_steps`` runs whose token embeddings lie on the
    straight path from the base to the other run, at (s + 0.5) / ig_steps, times (other minus base).
    """
    own = any(name in QKV for name in components)
    base_ids, other_ids = _base_and_other(clean_ids, corrupted_ids, direction)
    base = run(model, base_ids, own_attention=own)
    other = run(model, other_ids, own_attention=own)
    total: dict[Any, Tensor] = {}
    for step in range(ig_steps):
        between = run(model, base_ids, own_attention=own, embeddings=_between(base, other, (step + 0.5) / ig_steps))
        for key, gradient in _wanted_gradients(metric_fn, between, components).items():
            total[key] = total.get(key, 0) + gradient / ig_steps
    return _first_order(model, base, other, total, components)


def embedding_completeness(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    *,
    direction: Direction,
    ig_steps: int,
) -> tuple[float, float]:
    """The integrated gradients on the embeddings summed over everything, and what the sum converges to.

    The second number is M(other run) - M(base run): M(clean) - M(corrupted) for ``denoise``.
    """
    base_ids, other_ids = _base_and_other(clean_ids, corrupted_ids, direction)
    base = run(model, base_ids, own_attention=False)
    other = run(model, other_ids, own_attention=False)
    attributed = 0.0
    for step in range(ig_steps):
        between = run(model, base_ids, own_attention=False, embeddings=_between(base, other, (step + 0.5) / ig_steps))
        gradient = _gradients(metric_fn(between.logits), {"embeddings": between.embeddings})["embeddings"]
        attributed += (gradient * (other.embeddings - base.embeddings)).sum().item() / ig_steps
    return attributed, (metric_fn(other.logits) - metric_fn(base.logits)).item()


def exact(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    component: str,
    *,
    direction: Direction,
    fraction: float = 1.0,
    other: Run | None = None,
) -> Scores:
    """Activation patching: M(base run with one activation replaced) - M(base run), one activation at a time.

    Args:
        fraction: how far the activation moves from the base run's to the other run's; 1 replaces it.
        other: as for `atp`.
    """
    own = component in QKV
    base_ids, other_ids = _base_and_other(clean_ids, corrupted_ids, direction)
    with torch.no_grad():
        base = run(model, base_ids, own_attention=own)
        other = other or run(model, other_ids, own_attention=own)
        layers = []
        for layer in range(n_layers(model)):
            old = by_head(model, component, base.seen[component, layer])
            value = torch.lerp(old, by_head(model, component, other.seen[component, layer]), fraction)
            patches = [Patch(component, layer, *place, value[place]) for place in np.ndindex(*value.shape[:2])]
            patched = patched_logits(model, base_ids, patches, own_attention=own)
            effects = torch.stack([metric_fn(logits) for logits in patched]) - metric_fn(base.logits)
            layers.append(effects.float().view(value.shape[:2]))
    return _stack(layers)


def atp_hvp(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    component: str,
    *,
    signs: Scores,
    direction: Direction,
    step: float = 3e-5,
    other: Run | None = None,
) -> Scores:
    """Attribution patching and half of v . H v, for one direction v over all nodes of a component.

    v is ``signs`` times (other minus base). The product is a central difference of gradients: H v is about
    (g(base + step v) - g(base - step v)) / (2 step), where every activation is moved by its part of v at once.
    """
    base_ids, other_ids = _base_and_other(clean_ids, corrupted_ids, direction)
    own = component in QKV
    base, other = run(model, base_ids, own_attention=own), other or run(model, other_ids, own_attention=own)
    keys = [(component, layer) for layer in range(n_layers(model))]
    v = {}
    for key, sign in zip(keys, torch.tensor(signs), strict=True):
        v[key] = (other.seen[key] - base.seen[key]).detach()
        by_head(model, component, v[key]).mul_(sign.unsqueeze(-1))
    there, back = (
        _wanted_gradients(
            metric_fn,
            run(model, base_ids, own_attention=own, shifts={key: way * v[key] for key in keys}),
            [component],
        )
        for way in (step, -step)
    )
    first = _first_order(model, base, other, _wanted_gradients(metric_fn, base, [component]), [component])[component]
    second = [by_head(model, component, v[key] * (there[key] - back[key])).sum(-1) / (2 * step) for key in keys]
    return first + _stack(second) / 2


def atp_star(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    components: Sequence[str],
    *,
    direction: Direction,
    qk_fix: bool = True,
    grad_drop: bool = True,
    other: Run | None = None,
) -> dict[str, Scores]:
    """AtP* (Kramar et al. 2024, arXiv 2403.00745, section 3), literally.

    QK fix (equations 6-10). Let A be the base run's attention probabilities of a head, and A' those with one
    query, or one key, replaced by the other run's and the softmax computed again. The query at position t
    changes row t of A alone; the key at s changes, through the softmax, all of every row that sees it:

        I(q at t) = sum_s dM/dA[t, s] * (A'[t, s] - A[t, s])
        I(k at s) = sum_h sum_t sum_u dM/dA[h, t, u] * (A'[h, t, u] - A[h, t, u])

    with h over the query heads that the key head serves, and dM/dA[t, s] = dM/dz[t] . v[s], z being A @ v.
    Every other component takes gradient times difference as in ``atp``.

    GradDrop (equations 11-12). I_l is I with the gradients taken while what layer l adds to the residual
    stream, by attention and MLP, is held constant: gradients pass layer l by its skip connection alone.
    Over all L layers:

        c(n) = 1 / (L - 1) * sum_l |I_l(n)|

    A node inside layer l has I_l = 0, so c is the mean over the L - 1 drops that the node survives, and
    a node with nothing but a direct effect keeps |I|. The residual stream is not among the paper's nodes;
    it is inside no layer and survives all L drops, so its mean is over L. c is never negative; with
    ``grad_drop=False`` the result is the signed I.
    """
    base_ids, other_ids = _base_and_other(clean_ids, corrupted_ids, direction)
    there = other or run(model, other_ids, own_attention=True)

    def estimates(dropped_layer: int | None) -> dict[str, Scores]:
        base = run(model, base_ids, own_attention=True, dropped_layer=dropped_layer)
        gradients = _wanted_gradients(metric_fn, base, {*components, "z"})
        scores = _first_order(model, base, there, gradients, components)
        fixed = [name for name in components if qk_fix and name in {"q", "k"}]
        return scores | {name: _qk_fixed(model, base, there, gradients, name) for name in fixed}

    if not grad_drop:
        return estimates(None)
    n_drops = n_layers(model)
    per_drop = [estimates(layer) for layer in range(n_drops)]
    return {
        name: np.abs([scores[name] for scores in per_drop]).sum(0) / (n_drops - (name not in RESIDUAL_STREAM))
        for name in components
    }


def zeros(model: PreTrainedModel, ids: Sequence[int]) -> Run:
    """A run in which every activation is 0."""
    found = run(model, ids, own_attention=True)
    return replace(found, seen={key: torch.zeros_like(values) for key, values in found.seen.items()})


def mean(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Run:
    """A run in which every activation is the mean over those of prompts of one length."""
    runs = [run(model, ids, own_attention=True) for ids in prompts]
    seen = {key: torch.stack([one.seen[key] for one in runs]).mean(0).detach() for key in runs[0].seen}
    return replace(runs[0], seen=seen)


def _between(base: Run, other: Run, fraction: float) -> Tensor:
    return torch.lerp(base.embeddings, other.embeddings, fraction).detach()


def _wanted_gradients(metric_fn: Metric, base: Run, components: Any) -> dict[Any, Tensor]:
    wanted = {key: tensor for key, tensor in base.seen.items() if key[0] in components}
    return _gradients(metric_fn(base.logits), wanted)


def _first_order(
    model: PreTrainedModel, base: Run, other: Run, gradients: dict[Any, Tensor], components: Sequence[str]
) -> dict[str, Scores]:
    """Gradient times (other minus base), summed over features."""
    scores = {}
    for name in components:
        keys = [(name, layer) for layer in range(n_layers(model))]
        products = [gradients[key] * (other.seen[key] - base.seen[key]) for key in keys]
        scores[name] = _stack([by_head(model, name, product).sum(-1) for product in products])
    return scores


def _qk_fixed(model: PreTrainedModel, base: Run, other: Run, gradients: dict[Any, Tensor], component: str) -> Scores:
    """The first-order effect, on the attention probabilities, of replacing one query or key at a time."""
    layers = []
    for layer in range(n_layers(model)):
        query, key, value = (base.seen[name, layer][0].detach() for name in QKV)
        probabilities = base.softmax[layer].probabilities(query, key)
        grad_z = by_head(model, "z", gradients["z", layer])
        grad_probabilities = grad_z @ to_query_heads(value, query.shape[0]).transpose(-1, -2)
        effect = torch.zeros(base.seen[component, layer].shape[1:3])
        for head, position in np.ndindex(*effect.shape):
            patched = {"q": query.clone(), "k": key.clone()}
            patched[component][head, position] = other.seen[component, layer][0, head, position]
            change = base.softmax[layer].probabilities(patched["q"], patched["k"]) - probabilities
            effect[head, position] = (grad_probabilities * change).sum().detach()
        layers.append(effect)
    return _stack(layers)


def _base_and_other(clean: Any, corrupted: Any, direction: Direction) -> tuple[Any, Any]:
    return (corrupted, clean) if direction == "denoise" else (clean, corrupted)


def _stack(layers: Sequence[Tensor]) -> Scores:
    return torch.stack(list(layers)).detach().cpu().numpy().astype(np.float64)


def _gradients(metric: Tensor, wanted: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """The gradient of ``metric`` on each tensor; 0 where the metric does not depend on it."""
    found = torch.autograd.grad(metric, list(wanted.values()), allow_unused=True)
    return {
        key: torch.zeros_like(tensor) if gradient is None else gradient
        for (key, tensor), gradient in zip(wanted.items(), found, strict=True)
    }
