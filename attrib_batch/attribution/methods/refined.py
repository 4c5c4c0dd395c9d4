"""Refined attribution patching: estimate everything, measure what matters.

``atp`` scores every node, a component at one layer, head and position. Then nodes are replaced for real, as ``exact``
does, from the keys, values and activations that ``atp`` computed, and what is measured takes the place of the estimate.

**Budget.** ``budget`` says what the measurements of a task may cost, as a share of what ``atp`` costs: 3 passes of the
suffixes, of both prompts and the gradient. A replacement at position p of T, at layer l of L, computes T - p tokens
through L - l layers. Components of a method have equal shares.

**Choice.** The first order goes wrong in two ways. Where a node matters, its error matters: so each pair's largest
|score| are measured. And one pair's gradient may not see a node at all that others show to matter: so nodes with the
largest mean |score| over the pairs of the task, a chunk, are measured in every pair. The latter have nine tenths of
the budget; a pair's own have what they leave of its share. Nodes of different prompts are the same node if their tokens
have the same role, or, where they have none, stand as far from the end. Largest is meant for what it costs, in order of
|score| over cost: that reaches most nodes, the last positions and layers first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from attrib_batch.attribution.base_graph import BaseGraph
from attrib_batch.attribution.contrast import sites_in_order
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.passes.base import by_token
from attrib_batch.attribution.patching import INTO_LAYER, Nodes, Patcher
from attrib_batch.attribution.scores import BatchScores, Scores
from attrib_batch.attribution.steps import TwoSteps
from attrib_batch.models.families import Dimensions
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.spec.positions import positions_asked

ATP_PASSES = 3
"""What ``atp`` costs, in passes of a pair's suffix: both prompts, and the gradient on one."""
CHUNK_SHARE = 0.9
"""The part of the budget for nodes that are measured in every pair. Of shares from 0.5 to 1 the best over three
wordings of indirect object identification, and as good as any on five other tasks and on a mixture of these (SmolLM2,
``z`` at the last position)."""


def estimate(passes: Passes, pairs: Sequence[EncodedPair], method: Method) -> tuple[Scores, Patcher | None]:
    """Score pairs of any shapes to first order; return also what they were computed from, for `measure`.

    Padded rows cannot begin within what was computed with a graph: there is nothing to return.
    """
    model, dimensions = passes.model, passes.model.dimensions
    sites = sites_in_order(model, method.components)
    holds = not passes.padded
    read = [INTO_LAYER, *sites.values()] if holds else list(sites.values())
    base = BaseGraph.of(passes, pairs, method, read, hold=holds)
    gradients = base.gradients(list(sites.values()))
    scores = {}
    with torch.no_grad():
        for component, site in sites.items():
            layers = []
            for layer, gradient in enumerate(gradients):
                slope = at_least_float32(base.at_base.take(by_token(gradient[site.key], site, dimensions)))
                score = (slope * base.difference(component, layer, site, dimensions)).sum(-1)
                layers.append(score.to(model.device, non_blocking=True))
            scores[component] = torch.stack(layers)
    result = base.objective.with_scores(scores, base.entries.count)
    return result, Patcher.of_graph(base, pairs, sites) if holds else None


def measure(
    passes: Passes, pairs: Sequence[EncodedPair], patcher: Patcher, choice: Choice, *, batch_tokens: int
) -> Scores:
    """Return the scores of pairs, those that were chosen measured, and what was estimated in their place."""
    numbers = {component: number for number, component in enumerate(patcher.sites)}
    chosen = [choice.of_pair[pair.pair_id] for pair in pairs]
    first = np.array([pair.first_difference for pair in pairs], dtype=np.int64)
    count = np.array([pair.n_tokens for pair in pairs], dtype=np.int64) - first
    starts = np.cumsum(count) - count
    scores: dict[Component, np.ndarray] = {}
    estimates: dict[Component, np.ndarray] = {}
    parts = []
    for component in patcher.sites:
        of_pairs = [of_pair.estimates[component].transpose(0, 2, 1) for of_pair in chosen]
        scores[component] = np.concatenate(of_pairs, axis=1)
        estimates[component] = np.full_like(scores[component], np.nan)
        for index, of_pair in enumerate(chosen):
            layer, head, place = np.nonzero(of_pair.measured[component])
            kind = np.full(len(layer), numbers[component], dtype=np.int64)
            parts.append(Nodes(np.full_like(layer, index), place + first[index], kind, layer, head))
    nodes = Nodes.joined(parts)
    effects = patcher.effects(passes, nodes, batch_tokens=batch_tokens).float().cpu().numpy()
    entry = starts[nodes.pair] + nodes.position - first[nodes.pair]
    for component, number in numbers.items():
        mine = nodes.component == number
        at = nodes.layer[mine], entry[mine], nodes.head[mine]
        estimates[component][at] = scores[component][at]
        scores[component][at] = effects[mine]
    clean, corrupted = (of.double().cpu().numpy() for of in (patcher.objective.clean, patcher.objective.corrupted))
    return Scores(scores, count, clean, corrupted, estimates=estimates)


@dataclass(frozen=True)
class ChosenOfPair:
    """The scores of a pair, and which of its nodes are to be measured."""

    estimates: Mapping[Component, Float[np.ndarray, "layer head place"]]
    measured: Mapping[Component, Bool[np.ndarray, "layer head place"]]


@dataclass(frozen=True)
class Choice:
    """Which nodes of a task's pairs are measured, by the ids of the pairs."""

    of_pair: dict[int, ChosenOfPair]

    @property
    def digest(self) -> str:
        """A hash of which nodes are measured."""
        found = sha256()
        for pair_id, of_pair in sorted(self.of_pair.items()):
            found.update(str(pair_id).encode())
            for component, measured in of_pair.measured.items():
                found.update(str(component).encode())
                found.update(np.packbits(measured).tobytes())
        return found.hexdigest()


def choose(
    dimensions: Dimensions, method: Method, scored: Sequence[tuple[Sequence[EncodedPair], BatchScores]]
) -> Choice:
    """Choose the nodes that are measured, from the scores of all pairs of a task."""
    budget = float(method.parameters["budget"]) * ATP_PASSES * dimensions.n_layers / len(method.components)
    found: dict[int, dict[Component, np.ndarray]] = defaultdict(dict)
    estimates: dict[int, dict[Component, np.ndarray]] = defaultdict(dict)
    for component in method.components:
        candidates = [
            _Candidates.of(pair, result.scores[component][index], method.parameters["measure_at"])
            for pairs, result in scored
            for index, pair in enumerate(pairs)
        ]
        everywhere = _chosen_everywhere(candidates, budget * CHUNK_SHARE)
        for one in candidates:
            found[one.pair.pair_id][component] = one.choose(everywhere, budget)
            estimates[one.pair.pair_id][component] = one.scores
    return Choice({pair_id: ChosenOfPair(estimates[pair_id], measured) for pair_id, measured in found.items()})


Label = tuple[str | None, int]
"""Which token of a prompt: a role and which of its tokens, from the last; or no role, and how far from the end."""


@dataclass(frozen=True)
class _Candidates:
    """The nodes of one component of a pair."""

    pair: EncodedPair
    scores: Float[np.ndarray, "layer head place"]
    """Places are positions from the first difference on."""
    labels: list[Label | None]
    """Of each place; None where nothing is to be measured."""

    @classmethod
    def of(
        cls, pair: EncodedPair, scores: Float[np.ndarray, "layer head place"], at: str | Sequence[str]
    ) -> _Candidates:
        """Take the nodes of a pair at the positions that ``at`` means."""
        asked = set(positions_asked(at, pair.roles))
        seen: dict[str | None, int] = defaultdict(int)
        labels: list[Label | None] = []
        for position in reversed(range(pair.first_difference, pair.n_tokens)):
            role = pair.roles[position]
            seen[role] += 1
            label = (role, seen[role]) if role is not None else (None, pair.n_tokens - position)
            labels.append(label if position in asked else None)
        return cls(pair, scores, labels[::-1])

    @property
    def suffix(self) -> int:
        """How many positions both prompts have that differ."""
        return len(self.labels)

    @property
    def cost(self) -> Int[np.ndarray, "layer place"]:
        """What it costs to measure a node: tokens times layers."""
        return cost_of(self.scores.shape[0], self.suffix)

    def choose(self, everywhere: Mapping[Label, Bool[np.ndarray, "layer head"]], budget: float) -> np.ndarray:
        """Return which nodes are measured: those that are measured everywhere, and its own largest.

        Args:
            everywhere: by label.
            budget: what measurements of a pair may cost, for each position of its suffix.
        """
        chosen = np.zeros(self.scores.shape, dtype=bool)
        asked = np.array([label is not None for label in self.labels])
        for place, label in enumerate(self.labels):
            if label is not None and label in everywhere:
                chosen[:, :, place] = everywhere[label]
        cost = np.broadcast_to(self.cost[:, None, :], chosen.shape)
        left = budget * self.suffix - cost[chosen].sum()
        candidates = np.flatnonzero(~chosen & asked)
        value = np.abs(self.scores).ravel()[candidates]
        chosen.ravel()[candidates[_largest(value, cost.ravel()[candidates], left)]] = True
        return chosen


def _chosen_everywhere(candidates: Sequence[_Candidates], budget: float) -> dict[Label, Bool[np.ndarray, "layer head"]]:
    """Return which nodes are measured in every pair, by label: the largest by the sum of |score|."""
    value: dict[Label, np.ndarray] = {}
    cost: dict[Label, np.ndarray] = {}
    for one in candidates:
        for place, label in enumerate(one.labels):
            if label is not None:
                value[label] = value.get(label, 0) + np.abs(one.scores[:, :, place]).astype(np.float64)
                cost[label] = cost.get(label, 0) + one.cost[:, place]
    labels = sorted(value, key=repr)
    if not labels:
        return {}
    values = np.stack([value[label] for label in labels])
    costs = np.broadcast_to(np.stack([cost[label] for label in labels])[:, :, None], values.shape)
    chosen = np.zeros(values.shape, dtype=bool)
    total = budget * sum(one.suffix for one in candidates)
    chosen.ravel()[_largest(values.ravel(), costs.ravel(), total)] = True
    return dict(zip(labels, chosen, strict=True))


def _largest(
    value: Float[np.ndarray, " node"], cost: Int[np.ndarray, " node"], budget: float
) -> Int[np.ndarray, " chosen"]:
    """Return the largest for what they cost, by index, as many as may be paid; a value of 0 is worth nothing."""
    order = np.argsort(-value / cost, kind="stable")
    affordable = int(np.searchsorted(np.cumsum(cost[order]), budget, side="right"))
    order = order[:affordable]
    return order[value[order] > 0]


def cost_of(n_layers: int, suffix: int) -> Int[np.ndarray, "layer place"]:
    """Return what replacements cost, in tokens times layers, at each layer and place of a suffix."""
    found: np.ndarray = (n_layers - np.arange(n_layers))[:, None] * (suffix - np.arange(suffix))[None]
    return found


refined = TwoSteps(first=estimate, choose=choose, again=Patcher.of, second=measure)
"""The method, for the registry."""
