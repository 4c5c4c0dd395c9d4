"""Whole answers by plain torch: full forward passes of a prompt with every answer, hooks shared by all of them.

The metric is computed as a whole, the mean over the right answers minus that over the wrong ones, and differentiated as
a whole: nothing here adds up scores of single answers.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.demo_pairs import NAME_IDS, TokenPair, random_pairs
from tests.support.metrics import log_prob
from tests.support.scored import encoded
from tests.support.sites import sites_of
from tests.support.terms import largest_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from attrib_batch.pairs.encoding.encode import EncodedPair

    Change = Callable[[Tensor], Tensor]
    Activations = dict[tuple[str, int], Tensor]

COMPONENTS = ("resid_pre", "z", "mlp_out")


@dataclass(frozen=True)
class WholePair:
    """A pair of prompts, and sets of answers of one length."""

    clean: Sequence[int]
    corrupted: Sequence[int]
    right: Sequence[Sequence[int]]
    wrong: Sequence[Sequence[int]]

    def base_and_other(self, direction: str) -> tuple[Sequence[int], Sequence[int]]:
        """The prompt that is patched, and the one whose activations are patched in."""
        return (self.corrupted, self.clean) if direction == "denoise" else (self.clean, self.corrupted)


def whole(pairs: Sequence[WholePair]) -> list[EncodedPair]:
    """Pairs as the engine takes them where whole answers are asked for, with ids in order."""
    bare = encoded([TokenPair(list(pair.clean), list(pair.corrupted), [], []) for pair in pairs])
    return [
        replace(found, right_sequences=tuple(map(tuple, pair.right)), wrong_sequences=tuple(map(tuple, pair.wrong)))
        for found, pair in zip(bare, pairs, strict=True)
    ]


def random_pairs_with_answers() -> list[WholePair]:
    """Answers of one to four tokens, some of which begin alike; prompts of two lengths, and two that are mirrored."""
    mary, john, anna, paul, kate, mark = NAME_IDS
    first, second, third = random_pairs(3, 8, 4)
    (long,) = random_pairs(1, 10, 3, seed=5)
    return [
        WholePair(first.clean, first.corrupted, [[mary, john, anna]], [[paul, kate, mark]]),
        WholePair(first.corrupted, first.clean, [[paul, kate]], [[paul, mary]]),
        WholePair(second.clean, second.corrupted, [[mary, john], [mary, anna]], [[kate, mark]]),
        WholePair(third.clean, third.corrupted, [[mary]], [[paul], [kate]]),
        WholePair(long.clean, long.corrupted, [[mary, mary, mary, john]], [[mary, mary, mary, anna]]),
    ]


def metric(
    model: PreTrainedModel, prompt: Sequence[int], pair: WholePair, changes: dict[tuple[str, int], Change] | None = None
) -> Tensor:
    """The metric of a prompt, with activations of its positions changed in every pass.

    Args:
        model: the model.
        prompt: one of the pair's.
        pair: whose answers they are.
        changes: by component and layer, or ("embeddings", -1) or ("entering", -1), what becomes of the prompt's
            activations [position, feature].
    """
    means = [
        torch.stack([_log_prob(model, prompt, answer, changes or {}) for answer in answers]).mean()
        for answers in (pair.right, pair.wrong)
    ]
    return means[0] - means[1]


def ablated(model: PreTrainedModel, pair: WholePair, other: Activations, names: Sequence[str]) -> Tensor:
    """The metric of the clean prompt with components replaced at every layer and position."""
    changes = {key: _becoming(value) for key, value in other.items() if key[0] in names}
    with torch.no_grad():
        return metric(model, pair.clean, pair, changes)


def atp(
    model: PreTrainedModel,
    pair: WholePair,
    *,
    direction: str,
    steps: int | None = None,
    other: Activations | None = None,
) -> dict[str, np.ndarray]:
    """Gradient times difference, [layer, head, position]; with ``steps`` averaged over the embeddings' way.

    The difference is to ``other``, if given, and otherwise to the other prompt.
    """
    base_ids, other_ids = pair.base_and_other(direction)
    base, end = activations(model, base_ids), other or activations(model, other_ids)
    zeros = {key: torch.zeros_like(value, requires_grad=True) for key, value in base.items() if key[1] >= 0}
    total = {key: torch.zeros_like(value) for key, value in zeros.items()}
    # Zeros and means stand for what enters the first layer, position embeddings included; two prompts share those.
    way = ("embeddings" if other is None else "entering", -1)
    ends = base[way], end[way]
    for step in range(steps or 1):
        changes: dict[tuple[str, int], Change] = {}
        if steps:
            changes[way] = _becoming(torch.lerp(*ends, (step + 0.5) / steps))
        changes |= {key: _adding(zero) for key, zero in zeros.items()}
        value = metric(model, base_ids, pair, changes)
        for key, slope in zip(zeros, torch.autograd.grad(value, list(zeros.values())), strict=True):
            total[key] += slope / (steps or 1)
    return {
        name: np.stack(
            [
                by_head(model, name, total[name, layer] * (end[name, layer] - base[name, layer])).sum(-1).numpy().T
                for layer in range(model.config.num_hidden_layers)
            ]
        )
        for name in COMPONENTS
    }


def exact(
    model: PreTrainedModel, pair: WholePair, name: str, *, direction: str, other: Activations | None = None
) -> np.ndarray:
    """M(base with one activation replaced) - M(base), [layer, head, position]; replaced by ``other`` if given."""
    base_ids, other_ids = pair.base_and_other(direction)
    with torch.no_grad():
        other, before = other or activations(model, other_ids), metric(model, base_ids, pair)
        shape = by_head(model, name, other[name, 0]).shape[:2]
        effects = np.zeros((model.config.num_hidden_layers, shape[1], shape[0]))
        for layer, head, position in np.ndindex(*effects.shape):
            value = by_head(model, name, other[name, layer])[position, head]
            change = {(name, layer): _replacing(model, name, position, head, value)}
            effects[layer, head, position] = metric(model, base_ids, pair, change) - before
    return effects


def terms(model: PreTrainedModel, pair: WholePair) -> float:
    """The size of what is added up: that of every token's log-probability, over tokens and averaged over answers."""
    return sum(
        sum(
            largest_terms(model, [*pair.clean, *answer[:n]], [*pair.corrupted, *answer[:n]], log_prob([answer[n]]))
            for answer in answers
            for n in range(len(answer))
        )
        / len(answers)
        for answers in (pair.right, pair.wrong)
    )


def activations(model: PreTrainedModel, prompt: Sequence[int]) -> Activations:
    """The activations of a prompt alone, [position, feature], with its embeddings and what enters the first layer."""
    seen: dict[tuple[str, int], Tensor] = {}

    def seeing(key: tuple[str, int]) -> Change:
        def keep(values: Tensor) -> Tensor:
            seen[key] = values.detach().clone()
            return values

        return keep

    keys = [(name, layer) for name in COMPONENTS for layer in range(model.config.num_hidden_layers)]
    with torch.no_grad():
        _forward(
            model, prompt, len(prompt), {key: seeing(key) for key in [("embeddings", -1), ("entering", -1), *keys]}
        )
    return seen


def by_head(model: PreTrainedModel, name: str, values: Tensor) -> Tensor:
    """View [position, feature] as [position, head, feature]; one head but for z."""
    return values.unflatten(-1, (model.config.num_attention_heads if name == "z" else 1, -1))


def _log_prob(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int], changes: dict[tuple[str, int], Change]
) -> Tensor:
    log_probs = _forward(model, [*prompt, *answer], len(prompt), changes).log_softmax(-1)
    return torch.stack([log_probs[len(prompt) - 1 + n, token] for n, token in enumerate(answer)]).sum()


def _forward(
    model: PreTrainedModel, ids: Sequence[int], n_prompt: int, changes: dict[tuple[str, int], Change]
) -> Tensor:
    sites = sites_of(model)
    with ExitStack() as stack:
        for (name, number), change in changes.items():
            handle = _hook(model, sites, name, number, _on_prompt(change, n_prompt))
            stack.callback(handle.remove)
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0]


def _hook(model: PreTrainedModel, sites: Any, name: str, number: int, change: Change) -> Any:
    if name == "embeddings":
        return model.get_submodule(sites.embedding).register_forward_hook(lambda _m, _a, output: change(output))
    layer = model.get_submodule(sites.layers)[max(0, number)]
    if name == "mlp_out":
        return layer.get_submodule(sites.mlp_out).register_forward_hook(lambda _m, _a, output: change(output))
    module: nn.Module = layer if name in {"resid_pre", "entering"} else layer.get_submodule(sites.projection)
    return module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:]))


def _on_prompt(change: Change, n_prompt: int) -> Change:
    return lambda values: torch.cat([change(values[0, :n_prompt]), values[0, n_prompt:]]).unsqueeze(0)


def _adding(zero: Tensor) -> Change:
    return lambda values: values + zero


def _becoming(value: Tensor) -> Change:
    return lambda _values: value


def _replacing(model: PreTrainedModel, name: str, position: int, head: int, value: Tensor) -> Change:
    def put(values: Tensor) -> Tensor:
        values = values.clone()
        by_head(model, name, values)[position, head] = value
        return values

    return put
