"""The size of what is added up in the scores of a pair, computed from the model (see ``tests.support.near``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.support import device
from tests.support.hooked_run import Run, by_head, run
from tests.support.metrics import metric_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from attrib_batch.pairs.encoding.encode import EncodedPair
    from tests.support.demo_pairs import TokenPair
    from tests.support.metrics import Metric


def largest_terms(
    model: PreTrainedModel,
    clean_ids: Sequence[int],
    corrupted_ids: Sequence[int],
    metric_fn: Metric,
    *,
    direction: str | None = None,
) -> float:
    """Return the largest, over all activations, of the sum over features of |gradient| (|clean| + |corrupted|).

    The activations are those that plain hooks see: every component but queries, keys and values, with the heads of z
    apart. If the metric is not linear in the logits, the terms of a logit times the largest first-order score are
    added.

    Args:
        model: the model, in any precision.
        clean_ids: the clean prompt.
        corrupted_ids: the corrupted prompt.
        metric_fn: the metric.
        direction: take gradients on the base run of this direction alone; otherwise on both runs.
    """
    clean, corrupted = (run(model, ids, own_attention=False) for ids in (clean_ids, corrupted_ids))
    linear = _is_linear(metric_fn, clean.logits, corrupted.logits)
    found = []
    for of, base, other in (("denoise", corrupted, clean), ("noise", clean, corrupted)):
        if direction in {None, of}:
            magnitude, score = _terms(model, base, other, metric_fn)
            found.append(magnitude if linear else magnitude + score * _terms(model, base, other, torch.max)[0])
    return max(found)


def terms_of(
    model: PreTrainedModel,
    pair: EncodedPair | TokenPair,
    metric: str = "logit_diff",
    *,
    direction: str | None = None,
) -> float:
    """Return ``largest_terms`` of a pair for the metric of a name."""
    with torch.no_grad():
        clean_logits = model(torch.tensor([pair.clean], device=device.of(model))).logits[0, -1]
    metric_fn = metric_of(metric, pair.answers, pair.wrong_answers, clean_logits)
    return largest_terms(model, pair.clean, pair.corrupted, metric_fn, direction=direction)


def _terms(model: PreTrainedModel, here: Run, there: Run, metric_fn: Metric) -> tuple[float, float]:
    """The largest sum of magnitudes, and the largest first-order score, with gradients on the run ``here``."""
    keys = list(here.seen)
    tensors = [here.seen[key] for key in keys]
    gradients = torch.autograd.grad(metric_fn(here.logits), tensors, allow_unused=True, retain_graph=True)
    magnitude = score = 0.0
    for key, gradient in zip(keys, gradients, strict=True):
        if gradient is None:  # nothing of the last layer reaches the logits but its last position, in some families
            continue
        a, b = (tensor.seen[key].detach() for tensor in (here, there))
        magnitude = max(magnitude, _largest(model, key[0], gradient.abs() * (a.abs() + b.abs())))
        score = max(score, _largest(model, key[0], gradient * (b - a)))
    return magnitude, score


def _largest(model: PreTrainedModel, component: str, products: Tensor) -> float:
    return by_head(model, component, products).sum(-1).abs().max().item()


def _is_linear(metric_fn: Metric, *logits: Tensor) -> bool:
    """Whether the metric's gradient is the same at all these logits."""
    leaves = [at.detach().requires_grad_() for at in logits]
    first, *others = (torch.autograd.grad(metric_fn(leaf), leaf)[0] for leaf in leaves)
    return all(torch.equal(other, first) for other in others)
