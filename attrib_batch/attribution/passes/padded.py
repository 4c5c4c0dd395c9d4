"""Suffixes as rows of their own, padded on the right, each with a copy of its prefix's keys and values.

Causality makes padding on the right exact: no position sees a later one. The rows of a micro-batch share the length of
their prefixes, that of the shortest, so that all suffixes begin at one position.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache

from attrib_batch.attribution.batches import Row, Tokens, by_cost, by_shape
from attrib_batch.attribution.passes.base import Capture, Layout, Passes
from attrib_batch.models.devices import on_device
from attrib_batch.models.families import Site
from attrib_batch.models.load import LoadedModel
from attrib_batch.models.rotary import angles_follow_from_positions, prefix_is_reusable
from attrib_batch.pairs.encoding.encode import EncodedPair

SHARED_START_TOKENS = 32
"""How many token positions a pass of its own for the start that all prefixes share must save to be worth it."""


class PaddedPasses(Passes):
    """Passes of suffixes that are padded on the right."""

    padded = True

    def __init__(self, model: LoadedModel) -> None:
        """Pass suffixes through any model."""
        Passes.__init__(self, model)  # not by super(), which does not travel to a server
        self._length = 0
        self._prompts: list[Tokens] = []
        self._prefix: PrefixCache | WholeCache | None = None

    def begin(self, _pairs: Sequence[EncodedPair]) -> None:
        """Forget what was computed before."""
        self._prefix = None

    def together(self, pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
        """Put shapes together where padding costs less than further passes."""
        if not angles_follow_from_positions(self.model.module.config):
            return by_shape(pairs)
        return by_cost(pairs, self.pass_tokens)

    def prepare(self, pairs: Sequence[EncodedPair]) -> None:
        """Take the shortest prefix of the pairs as everyone's; none where it cannot be computed by itself."""
        config = self.model.module.config
        shortest = min(pair.first_difference for pair in pairs)
        reusable = all(prefix_is_reusable(config, shortest, pair.n_row_tokens) for pair in pairs)
        self._length = shortest if reusable else 0
        self._prompts = list(dict.fromkeys(tokens for pair in pairs for tokens in (pair.clean, pair.corrupted)))
        self._prefix = None

    def hold(
        self, rows: Sequence[Row], sites: Sequence[Site], vocabulary: Sequence[int] | None, *, graph: bool = False
    ) -> Capture:
        """Compute whole prompts, and hold their keys and values."""
        self._prefix = WholeCache([row.tokens for row in rows])
        return self.forward(self.layout(rows), sites, graph=graph, vocabulary=vocabulary)

    def layout(self, rows: Sequence[Row]) -> Layout:
        """Give every row as many positions as the longest has."""
        if isinstance(self._prefix, WholeCache):
            self._length = 0 if self._prefix.empty else min(row.first for row in rows)
        width = max(len(row.tokens) for row in rows) - self._length
        rows = [Row(row.tokens, self._length, row.n_predicting) for row in rows]
        return Layout(rows, (len(rows), width), np.arange(len(rows), dtype=np.int64) * width - self._length)

    def _call(
        self,
        layout: Layout,
        *,
        graph: bool = False,  # noqa: ARG002 - its copies are there anyway
        twice: bool = False,
    ) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        if self._prefix is None:
            self._prefix = PrefixCache(self.model, self._prompts, self._length)
        tokens = [row.tokens for row in layout.rows]
        cache = self._prefix.for_rows(tokens, layout.rows[0].first)
        calling = plain_attention() if twice else nullcontext()
        return _inputs(self.model, tokens, layout.rows[0].first, cache), calling


@contextmanager
def plain_attention() -> Iterator[None]:
    """Have torch compute scaled dot product attention of operations that have second derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def padded_inputs(model: LoadedModel, rows: Sequence[Tokens], prefix: int) -> dict[str, Any]:
    """Build the arguments of a call of the model with rows from the position ``prefix`` on, padded on the right."""
    return _inputs(model, rows, prefix, PrefixCache(model, rows, prefix).for_rows(rows, prefix))


def _inputs(model: LoadedModel, rows: Sequence[Tokens], first: int, cache: Cache | None) -> dict[str, Any]:
    ids = np.zeros((len(rows), max(map(len, rows)) - first), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row) - first] = row[first:]
    return {
        "input_ids": on_device(ids, model.device),
        "past_key_values": cache,
        "use_cache": cache is not None,
    }


class WholeCache:
    """The keys and values of whole prompts, once a pass has computed them."""

    def __init__(self, rows: Sequence[Tokens]) -> None:
        """Wait for a pass of ``rows``."""
        from transformers import DynamicCache

        # Without the configuration, layers with a sliding window keep all their keys too; their mask hides the old.
        self._cache = DynamicCache()
        self._index = {tokens: index for index, tokens in enumerate(rows)}
        self.empty = True

    def for_rows(self, rows: Sequence[Tokens], length: int) -> Cache | None:
        """Return a cache of the first ``length`` positions of ``rows``; the first time, the one that is to grow."""
        from transformers import DynamicCache

        if self.empty:
            self.empty = False
            return self._cache
        if length == 0:
            return None
        index = torch.tensor([self._index[tokens] for tokens in rows])
        cache = DynamicCache()
        for number, layer in enumerate(self._cache.layers):
            place = index.to(layer.keys.device)
            keys, values = (of[:, :, :length].detach().index_select(0, place) for of in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return cache


class PrefixCache:
    """The key/value caches of the distinct prefixes of a micro-batch, computed once, without a graph."""

    def __init__(self, model: LoadedModel, rows: Sequence[Tokens], length: int) -> None:
        """Compute the prefixes.

        Args:
            model: the model.
            rows: whole prompts, which share prefixes where they begin with the same ``length`` tokens.
            length: positions in the prefix; may be 0.

        Raises:
            ValueError: the prefix, computed alone, is not that of the whole prompts.
        """
        self.length = length
        self._cache: Cache | None = None
        if length == 0:
            return
        config, n_tokens = model.module.config, max(map(len, rows))
        if not prefix_is_reusable(config, length, n_tokens):
            raise ValueError(f"{length} of {n_tokens} tokens, computed alone, have other keys than within the prompt")
        prefixes = sorted({tokens[:length] for tokens in rows})
        self._index = {prefix: index for index, prefix in enumerate(prefixes)}
        shared = _common_start(prefixes[0], prefixes[-1])
        cache = None
        worth_it = shared < length and shared * (len(prefixes) - 1) >= SHARED_START_TOKENS
        if worth_it and prefix_is_reusable(config, shared, n_tokens):
            cache = _extend(model, [prefixes[0][:shared]], None)
            cache = _select(cache, torch.zeros(len(prefixes), dtype=torch.long))
        else:
            shared = 0
        self._cache = _extend(model, [prefix[shared:] for prefix in prefixes], cache)

    def for_rows(self, rows: Sequence[Tokens], _length: int) -> Cache | None:
        """Return a cache whose rows are the prefixes of ``rows``; it may grow without touching this one."""
        if self._cache is None:
            return None
        return _select(self._cache, torch.tensor([self._index[tokens[: self.length]] for tokens in rows]))


def _extend(model: LoadedModel, rows: Sequence[Tokens], cache: Cache | None) -> Cache:
    """Pass tokens through the model without a graph and return the cache grown by them."""
    from transformers import DynamicCache

    ids = on_device(np.array(rows, dtype=np.int64), model.device)
    cache = DynamicCache(config=model.module.config) if cache is None else cache
    last = model.traced.get(model.architecture.layers)[-1].get(model.architecture.attention)
    with (
        torch.no_grad(),
        model.traced.trace(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1) as tracer,
    ):
        # Nothing after the last layer's keys and values is needed.
        last.output  # noqa: B018 - reading it is the event the pass stops at
        tracer.stop()
    return cache


def _select(cache: Cache, index: Int[Tensor, " row"]) -> Cache:
    """Return a cache with the rows at ``index``; layers grow by rebinding, so the original stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in selected.layers:
        place = index.to(layer.keys.device)
        layer.keys = layer.keys.index_select(0, place)
        layer.values = layer.values.index_select(0, place)
    return selected


def _common_start(first: Tokens, last: Tokens) -> int:
    """Length of the start that all of a sorted list of prefixes share, from its first and last."""
    for index, (a, b) in enumerate(zip(first, last, strict=True)):
        if a != b:
            return index
    return len(first)
