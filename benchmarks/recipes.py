"""Ways to compute the same scores: the engine, the tutorial's recipe, hand-written hooks, and one plain forward pass.

Each takes a workload and gives ``z`` scores by logit difference, denoising, as (pair, layer, head, position).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import einops
import numpy as np
import torch

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.spec import Component, MethodSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from attrib_batch.models.load import LoadedModel
    from benchmarks.workloads import Workload

METHOD = MethodSpec.model_validate({"id": "atp"})
ONE_BATCH = 1_000_000_000
"""A budget of tokens that no workload reaches."""


def engine(model: LoadedModel, work: Workload) -> np.ndarray:
    """This package, the workload as one micro-batch."""
    scores = np.zeros((len(work.pairs), *_score_shape(model.module, work)), dtype=np.float32)
    for _, outcome in score_pairs(model, work.pairs, [METHOD], TokenBudget(ONE_BATCH)):
        if not isinstance(outcome, ScoredBatch):
            raise TypeError(f"a pair was not scored: {outcome}")
        values = outcome.result.scores[Component.Z]
        rows = [pair.pair_id for pair in outcome.pairs]
        scores[rows, ..., -values.shape[-1] :] = values
    return scores


def tutorial(model: LoadedModel, work: Workload) -> np.ndarray:
    """The nnsight tutorial's recipe, section 2, in the syntax of nnsight 0.8.

    As there: parameters require gradients, both runs are invokes of one trace, all logits are computed, activations and
    gradients of every layer are saved, einops reduces. Unlike there the metric is summed over the batch, not averaged
    and normalised, and scores are kept per pair and position; the two runs that only measure baselines are left out.
    """
    traced, answers = model.traced, work.answers
    clean_out, corrupted_out, corrupted_grads = [], [], []
    model.module.zero_grad(set_to_none=True)
    with traced.trace() as tracer:
        with tracer.invoke(work.clean):
            for layer in traced.model.layers:
                attn_out = layer.self_attn.o_proj.input
                clean_out.append(attn_out.save())
        with tracer.invoke(work.corrupted):
            activations = []
            for layer in traced.model.layers:
                attn_out = layer.self_attn.o_proj.input
                activations.append(attn_out)
                corrupted_out.append(attn_out.save())
            logits = traced.lm_head.output
            value = _logit_diff(logits[:, -1], answers).sum()
            with value.backward():
                for attn_out in reversed(activations):
                    corrupted_grads.append(attn_out.grad.save())  # noqa: PERF401 - as the tutorial has it
    results = [
        einops.reduce(
            grad * (clean - corrupted),
            "pair position (head feature) -> pair head position",
            "sum",
            feature=model.dimensions.head_dim,
        )
        for grad, clean, corrupted in zip(reversed(corrupted_grads), clean_out, corrupted_out, strict=True)
    ]
    return torch.stack(results, 1).detach().numpy()


def hooks(module: PreTrainedModel, work: Workload, *, contiguous_head: bool = False) -> np.ndarray:
    """Hand-written torch hooks: two forward passes and one backward pass, no prefix cache.

    Parameters are frozen, the clean run has no graph, and logits are computed at the last position alone.

    Args:
        module: a model with frozen parameters.
        work: the pairs.
        contiguous_head: copy the last position's hidden state together before the unembedding. As transformers slices
            it, torch multiplies row by row, and reads the whole matrix for each.
    """
    clean, corrupted = [], []
    with torch.no_grad():
        _forward(module, work.clean, clean, contiguous_head=contiguous_head)
    logits = _forward(module, work.corrupted, corrupted, contiguous_head=contiguous_head)
    gradients = torch.autograd.grad(_logit_diff(logits, work.answers).sum(), corrupted)
    with torch.no_grad():
        results = [
            (g * (a - b)).unflatten(-1, (module.config.num_attention_heads, -1)).sum(-1).transpose(1, 2)
            for g, a, b in zip(gradients, clean, corrupted, strict=True)
        ]
        return torch.stack(results, 1).numpy()


def plain_forward(module: PreTrainedModel, work: Workload, *, contiguous_head: bool = False) -> Tensor:
    """One forward pass of the clean prompts; last position's logits, no graph, nothing read."""
    with torch.no_grad():
        return _forward(module, work.clean, None, contiguous_head=contiguous_head)


def _forward(
    module: PreTrainedModel, ids: Tensor, activations: list[Tensor] | None, *, contiguous_head: bool
) -> Tensor:
    """The last position's logits; inputs of all output projections are appended to ``activations``."""

    def read(_module: nn.Module, args: Sequence[Tensor]) -> None:
        if torch.is_grad_enabled() and not args[0].requires_grad:
            args[0].requires_grad_(True)
        activations.append(args[0])

    def make_contiguous(_module: nn.Module, args: Sequence[Tensor]) -> tuple[Tensor]:
        return (args[0].contiguous(),)

    handles = []
    if activations is not None:
        handles += [layer.self_attn.o_proj.register_forward_pre_hook(read) for layer in module.model.layers]
    if contiguous_head:
        handles.append(module.lm_head.register_forward_pre_hook(make_contiguous))
    try:
        return module(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


def _logit_diff(logits: Tensor, answers: Tensor) -> Tensor:
    right, wrong = logits.gather(-1, answers).unbind(-1)
    return right - wrong


def _score_shape(module: PreTrainedModel, work: Workload) -> tuple[int, int, int]:
    config = module.config
    return config.num_hidden_layers, config.num_attention_heads, work.pairs[0].n_tokens
