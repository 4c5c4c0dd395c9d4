"""Activation patching: the effect that the other methods estimate, measured.

Vig et al. 2020 (arXiv 2004.12265), section 3; Meng et al. 2022 (arXiv 2202.05262), section 2; with the conventions of
Zhang, Nanda 2024 (arXiv 2309.16042). One activation at a time, a component of one layer, head and position,

    score(a) = M(base prompt with a_base replaced by a_other) - M(base prompt)

Denoising takes the corrupted prompt as the base and the clean prompt as the other; noising is the mirror. How a
replacement is measured, and what that costs, is in `attrib_batch.attribution.patching`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from attrib_batch.attribution.method import Method
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.patching import Nodes, Patcher
from attrib_batch.attribution.scores import Scores
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec.positions import ALL, positions_asked


def activation_patching(passes: Passes, pairs: Sequence[EncodedPair], method: Method, *, batch_tokens: int) -> Scores:
    """Score pairs of any shapes, one row of a forward pass per score.

    Only the positions that ``at`` asks for are computed. Rows are computed together as far as ``batch_tokens``
    positions go, those from the replaced one on.
    """
    dimensions, device = passes.model.dimensions, passes.model.device
    patcher = Patcher.of(passes, pairs, method)
    entries = _Entries.of(pairs, method.parameters["at"])
    first = np.array([pair.first_difference for pair in pairs], dtype=np.int64)
    # Before the first difference both prompts are the same, and a replacement changes nothing.
    changed = np.flatnonzero(entries.position >= first[entries.pair])
    heads = {component: dimensions.heads_of(component) or 1 for component in patcher.sites}
    every = np.array([(component, head) for component, n in enumerate(heads.values()) for head in range(n)])
    entry = np.repeat(changed, len(every))
    component, head = np.tile(every, (len(changed), 1)).T
    scores = {name: torch.zeros(dimensions.n_layers, len(entries.pair), n, device=device) for name, n in heads.items()}
    places = [
        (name, Index(mine), Index(entry[mine]), Index(head[mine]))
        for number, name in enumerate(heads)
        for mine in (np.flatnonzero(component == number),)
    ]
    for layer in range(dimensions.n_layers):
        nodes = Nodes(
            entries.pair[entry], entries.position[entry], component, np.full(len(entry), layer, dtype=np.int64), head
        )
        effects = patcher.effects(passes, nodes, batch_tokens=batch_tokens).float()
        for name, mine, at, of_head in places:
            scores[name][layer][at.on(device), of_head.on(device)] = mine.take(effects).to(device)
    return patcher.objective.with_scores(scores, entries.count, entries.asked)


@dataclass(frozen=True)
class _Entries:
    """What is asked for: a position of a pair each, pair after pair."""

    pair: Int[np.ndarray, " entry"]
    position: Int[np.ndarray, " entry"]
    count: Int[np.ndarray, " pair"]
    asked: Int[np.ndarray, " entry"] | None
    """The positions, where they are not all from the first difference on."""

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], at: str | Sequence[str]) -> _Entries:
        """List the positions of every pair that ``at`` means."""
        positions = [
            list(range(pair.first_difference, pair.n_tokens)) if at == ALL else positions_asked(at, pair.roles)
            for pair in pairs
        ]
        count = np.array([len(of_pair) for of_pair in positions], dtype=np.int64)
        position = np.array([position for of_pair in positions for position in of_pair], dtype=np.int64)
        return cls(np.repeat(np.arange(len(pairs)), count), position, count, None if at == ALL else position)
