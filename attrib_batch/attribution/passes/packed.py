"""Suffixes packed one behind the other, and prefixes that are held once.

A pass has one row of tokens, those of all its suffixes; nothing is padded. `blocks` says what attends to what, and
`cascade` computes it, as an attention function that transformers calls in place of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib_batch.attribution.batches import Row, Tokens, in_order
from attrib_batch.attribution.passes import fused
from attrib_batch.attribution.passes.base import Capture, Layout, Passes
from attrib_batch.attribution.passes.blocks import Block, Group, Level, groups_of
from attrib_batch.attribution.passes.cascade import Scale, Seen, Stretch, attend
from attrib_batch.attribution.passes.fused import Runs
from attrib_batch.attribution.passes.held import Gathered, Held, Keys, Recorded, joined
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.attribution.passes.tree import Node, in_depth_order, prefix_tree
from attrib_batch.attribution.passes.twice import attend_for_second_derivatives
from attrib_batch.models.devices import on_device
from attrib_batch.models.families import Site
from attrib_batch.models.families.dimensions import text_config
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair

ATTENTION = "attrib_batch_cascade"
"""The name under which transformers finds the attention function."""
LEAST_SAVED = 32
"""How many token positions a stretch that prefixes share must save to be worth a pass of its own."""
COPIED_KEYS = 32
"""Most keys that are copied for each new token of a pass, on a CPU and without a graph, so that a layer's attention is
one product for each stretch and not one for each depth of the tree."""
PREFIX_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Most tokens of prefixes that are computed at once, by kind of device: a GPU is not busy with fewer."""
PRODUCTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Most attention scores that are held at once, by kind of device: 16 MiB in float32, 512 MiB."""


@dataclass
class PackedAttention:
    """What every layer's attention of one pass is computed from; handed to the attention function as an argument."""

    levels: Sequence[tuple[Keys, Level]]
    """For each depth, what is held of the ancestors there."""
    own: Level
    record: Recorded | None
    """Takes the pass's own keys and values."""
    twice: bool = False
    """Whether gradients are to have gradients."""
    windows: dict[int, int | None] = field(default_factory=dict)
    """How many positions each layer said that it sees."""
    _how: dict[tuple[int | None, torch.device, bool], list[list[Block] | Runs]] = field(default_factory=dict)

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "1 head token feature"],
        key: Float[Tensor, "1 kv_head token feature"],
        value: Float[Tensor, "1 kv_head token value_feature"],
        *,
        scale: Scale,
        window: int | None,
        sinks: Float[Tensor, " head"] | None,
    ) -> Float[Tensor, "1 token head value_feature"]:
        """Compute a layer's attention."""
        self.windows[layer] = window
        if self.record is not None:
            self.record.keys.append(key[0].detach())
            self.record.values.append(value[0].detach())
        by_runs = not self.twice and fused.serves(query, value, softcap=scale.softcap)
        *above, own = self._how_of(window, query, by_runs)
        stretches = [
            Stretch(held.keys[layer], held.values[layer], how)
            for (held, _), how in zip(self.levels, above, strict=True)
        ]
        seen = Seen([*stretches, Stretch(None, None, own)], scale, sinks)
        found = (attend_for_second_derivatives if self.twice else attend)(query[0], key[0], value[0], seen)
        return found.transpose(0, 1).unsqueeze(0)

    def _how_of(self, window: int | None, query: Tensor, by_runs: bool) -> list[list[Block] | Runs]:
        """Say how every level is computed; layers on one device with one window share it."""
        kind = window, query.device, by_runs
        if kind not in self._how:
            n_heads = query.shape[1]
            most = PRODUCTS.get(query.device.type, PRODUCTS["cpu"])
            self._how[kind] = [
                (by_runs and not level.hides(window) and Runs.of(level, n_heads=n_heads, device=query.device))
                or level.blocks(window, n_heads=n_heads, most_products=most, device=query.device)
                for level in (*(level for _, level in self.levels), self.own)
            ]
        return self._how[kind]


class NotHandedOnError(Exception):
    """A model's layers do not hand on to their attention what a call of the model is given."""


def cascade_attention(
    module: Any,
    query: Float[Tensor, "1 head token feature"],
    key: Float[Tensor, "1 kv_head token feature"],
    value: Float[Tensor, "1 kv_head token value_feature"],
    _attention_mask: Tensor | None,
    *,
    cascade: PackedAttention | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    **_ignored: Any,
) -> tuple[Float[Tensor, "1 token head value_feature"], None]:
    """Compute attention for a model of transformers, which calls it as it calls its own functions.

    Raises:
        NotHandedOnError: the model does not hand on ``cascade``.
    """
    if cascade is None:
        raise NotHandedOnError
    scale = Scale(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
    found = cascade(module.layer_idx, query, key, value, scale=scale, window=sliding_window, sinks=s_aux)
    return found, None


class PackedPasses(Passes):
    """Passes of packed suffixes."""

    padded = False

    def __init__(self, model: LoadedModel) -> None:
        """Pass suffixes through a model that `choice` has found fit for it."""
        from transformers import AttentionInterface

        super().__init__(model)
        AttentionInterface.register(ATTENTION, cascade_attention)
        self._ends: dict[Tokens, Node | None] = {}
        self._held: dict[Node, Held] = {}
        self._held_rows: dict[Tokens, tuple[Held, int]] = {}
        """Of rows that are held as a whole, from a position on."""
        self._borrowed: list[Tokens] = []
        """Prefixes that are stretches of such rows."""
        self._recording: Recorded | None = None
        self._last: PackedAttention | None = None

    @property
    def windows(self) -> list[int | None]:
        """How many positions each layer said that it sees, in the last pass."""
        return [window for _, window in sorted(self._last.windows.items())] if self._last else []

    def begin(self, pairs: Sequence[EncodedPair]) -> None:
        """Arrange the prefixes of all pairs in one tree, so that micro-batches have stretches in common."""
        self._held.clear()
        self._held_rows.clear()
        self._borrowed.clear()
        self._ends = prefix_tree({pair.clean[: pair.first_difference] for pair in pairs}, least_saved=LEAST_SAVED)

    def together(self, pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
        """Put all pairs together: no shape costs another anything."""
        return [in_order(pairs)] if pairs else []

    def prepare(self, pairs: Sequence[EncodedPair]) -> None:
        """Forget the prefixes that these pairs do not have."""
        ends = {self._end(pair.clean[: pair.first_difference]) for pair in pairs}
        kept = {node for level in in_depth_order(ends) for node in level}
        self._held = {node: held for node, held in self._held.items() if node in kept}
        for prefix in self._borrowed:
            del self._ends[prefix]
        self._borrowed.clear()
        self._held_rows.clear()

    def hold(
        self, rows: Sequence[Row], sites: Sequence[Site], vocabulary: Sequence[int] | None, *, graph: bool = False
    ) -> Capture:
        """Compute rows and hold their keys and values."""
        record = Recorded()
        layout = self.layout(rows)
        self._recording = record
        try:
            passed = self.forward(layout, sites, graph=graph, vocabulary=vocabulary)
        finally:
            self._recording = None
        self._held_rows |= {
            row.tokens: (Held(record, int(origin) + row.first), row.first)
            for row, origin in zip(rows, layout.origin, strict=True)
        }
        return passed

    def layout(self, rows: Sequence[Row]) -> Layout:
        """Put rows one behind the other, those with the same prefix next to each other."""
        order = sorted(range(len(rows)), key=lambda index: rows[index].tokens[: rows[index].first])
        first = np.array([row.first for row in rows], dtype=np.int64)
        count = np.array([len(row.tokens) for row in rows], dtype=np.int64) - first
        ends = np.cumsum(count[order])
        start = np.empty_like(count)
        start[order] = ends - count[order]
        return Layout(rows, (1, int(ends[-1])), start - first)

    def _call(
        self, layout: Layout, *, graph: bool = False, twice: bool = False
    ) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        ends = [self._end_of(row) for row in layout.rows]
        self._compute(ends)
        order = np.argsort(layout.origin + np.array([row.first for row in layout.rows]))
        stretches = [
            (layout.rows[index].tokens[layout.rows[index].first :], layout.rows[index].first, ends[index])
            for index in order
        ]
        return self._arguments(stretches, record=self._recording, twice=twice, copied=not graph)

    def _end_of(self, row: Row) -> Node | None:
        """Return the node that a row follows; within a row that is held it is a stretch of that."""
        prefix = row.tokens[: row.first]
        if prefix not in self._ends and row.tokens in self._held_rows:
            held, first = self._held_rows[row.tokens]
            self._ends[prefix] = node = Node(self._end(prefix[:first]), prefix[first:], first)
            self._held[node] = held
            self._borrowed.append(prefix)
        return self._end(prefix)

    def _end(self, prefix: Tokens) -> Node | None:
        if prefix not in self._ends:
            # Not one of those that were announced.
            self._ends[prefix] = Node(None, prefix, 0) if prefix else None
        return self._ends[prefix]

    def _compute(self, ends: Sequence[Node | None]) -> None:
        """Compute the stretches on the paths to ``ends`` that are not held."""
        for level in in_depth_order(ends):
            missing = sorted(
                (node for node in level if node not in self._held), key=lambda node: [n.tokens for n in node.path]
            )
            for part in _parts(missing, PREFIX_TOKENS.get(self.model.device.type, PREFIX_TOKENS["cpu"])):
                record = Recorded()
                inputs, calling = self._arguments(
                    [(node.tokens, node.first, node.parent) for node in part], record=record
                )
                with torch.no_grad(), calling:
                    self._run_attention(inputs)
                start = 0
                for node in part:
                    self._held[node] = Held(record, start)
                    start += len(node.tokens)

    def _run_attention(self, inputs: dict[str, Any]) -> None:
        """Call the model as far as the attention of its last layer: keys and values are recorded by then."""
        last = self.model.traced.get(self.model.architecture.layers)[-1].get(self.model.architecture.attention)
        with self.model.traced.trace(**inputs) as tracer:
            last.output  # noqa: B018 - reading it is the event the pass stops at
            tracer.stop()

    def _arguments(
        self,
        stretches: Sequence[tuple[Tokens, int, Node | None]],
        *,
        record: Recorded | None,
        twice: bool = False,
        copied: bool = False,
    ) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """Build a call for stretches of tokens, each with the position it begins at and what it follows.

        With ``copied``, keys and values of what they follow may be copied where that makes fewer products.
        """
        tokens = np.fromiter(chain.from_iterable(stretch for stretch, _, _ in stretches), np.int64)
        first = np.array([first for _, first, _ in stretches])
        count = np.array([len(stretch) for stretch, _, _ in stretches])
        positions = ranges(first, count)
        ends = np.cumsum(count).tolist()
        starts = [0, *ends[:-1]]
        own = [Group(start, end - start, start, end - start) for start, end in pairwise([0, *ends])]
        attention = PackedAttention(
            levels=self._levels([node for _, _, node in stretches], starts, ends, positions, copied=copied),
            own=Level(own, positions, positions, causal=True),
            record=record,
            twice=twice,
        )
        self._last = attention
        device = self.model.device
        inputs = {
            "input_ids": on_device(tokens[None], device),
            "position_ids": on_device(positions[None], device),
            # A mask of four axes is taken as it is; the attention function needs none.
            "attention_mask": torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device),
            "use_cache": False,
            "cascade": attention,
        }
        return inputs, _attention_of(self.model)

    def _levels(
        self,
        nodes: Sequence[Node | None],
        starts: Sequence[int],
        ends: Sequence[int],
        positions: np.ndarray,
        *,
        copied: bool,
    ) -> list[tuple[Keys, Level]]:
        """Say which tokens see which stretch, at every depth of the tree.

        With ``copied`` there is but one depth, of copies of all that is followed, where these are few.
        """
        paths = [node.path if node else () for node in nodes]
        if copied and self.model.device.type == "cpu":
            whole = {node: path for node, path in zip(nodes, paths, strict=True) if node is not None}
            sizes = {node: sum(len(part.tokens) for part in path) for node, path in whole.items()}
            if max(map(len, whole.values()), default=0) > 1 and sum(sizes.values()) <= COPIED_KEYS * len(positions):
                return [self._whole_level(whole, sizes, nodes, (starts, ends, positions))]
        levels = []
        for depth in range(max(map(len, paths), default=0)):
            at_depth = [path[depth] if depth < len(path) else None for path in paths]
            there = list(dict.fromkeys(node for node in at_depth if node))
            n_tokens = [len(node.tokens) for node in there]
            keys, place, n_keys = joined([self._held[node] for node in there], n_tokens)
            key_positions = np.zeros(n_keys, dtype=np.int64)
            count = np.array(n_tokens)
            key_positions[ranges(np.array(place), count)] = ranges(np.array([node.first for node in there]), count)
            keys_of = {node: (at, len(node.tokens)) for node, at in zip(there, place, strict=True)}
            levels.append((keys, Level(groups_of(at_depth, keys_of, starts, ends), positions, key_positions)))
        return levels

    def _whole_level(
        self,
        whole: Mapping[Node, Sequence[Node]],
        sizes: Mapping[Node, int],
        nodes: Sequence[Node | None],
        queries: tuple[Sequence[int], Sequence[int], np.ndarray],
    ) -> tuple[Keys, Level]:
        """Return copies of the keys and values of whole paths, one behind the other, and which tokens see which.

        Args:
            whole: the nodes, and the paths that they end.
            sizes: how many tokens each path has.
            nodes: what each stretch of the pass follows.
            queries: where stretches start and end, and the positions of their tokens.
        """
        starts, ends, positions = queries
        parts = [part for path in whole.values() for part in path]
        n_tokens = [len(part.tokens) for part in parts]
        keys, place, _ = joined([self._held[part] for part in parts], n_tokens)
        count = np.array(n_tokens)
        order = Index(ranges(np.array(place), count))
        copies = Keys(*(Gathered([of], [order]) for of in (keys.keys, keys.values)))
        key_positions = ranges(np.array([part.first for part in parts]), count)
        ended = accumulate(sizes.values())
        keys_of = {node: (end - size, size) for (node, size), end in zip(sizes.items(), ended, strict=True)}
        return copies, Level(groups_of(nodes, keys_of, starts, ends), positions, key_positions)


def _parts(nodes: Sequence[Node], most: int) -> Iterator[list[Node]]:
    """Divide nodes, in order, into parts of at most so many tokens; one node may have more."""
    part: list[Node] = []
    taken = 0
    for node in nodes:
        if part and taken + len(node.tokens) > most:
            yield part
            part, taken = [], 0
        part.append(node)
        taken += len(node.tokens)
    if part:
        yield part


@contextmanager
def _attention_of(model: LoadedModel) -> Iterator[None]:
    """Have a model's layers call the attention function of this package."""
    config = text_config(model.module.config)
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
