"""What both ways of passing suffixes through a model have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.batches import Row
from attrib_batch.attribution.metrics import at_least_float32
from attrib_batch.attribution.passes.places import Index, ranges
from attrib_batch.models.activations import activation_at, put_back, replace_heads, skip_layer
from attrib_batch.models.devices import on_device
from attrib_batch.models.families import Dimensions, Site, SiteKey
from attrib_batch.models.load import LoadedModel

if TYPE_CHECKING:
    from attrib_batch.pairs.encoding.encode import EncodedPair


@dataclass(frozen=True)
class Layout:
    """Where the tokens of rows stand in the tensors of a pass, whose axes of rows and of positions are one here."""

    rows: Sequence[Row]
    shape: tuple[int, int]
    """Rows and positions of the model's input."""
    origin: Int[np.ndarray, " row"]
    """For each row the place of its position 0, were it computed: position p is at ``origin + p``."""

    @property
    def n_tokens(self) -> int:
        """Tokens of a pass, padding included."""
        return self.shape[0] * self.shape[1]

    def places(
        self, rows: Int[np.ndarray, " some"], first: Int[np.ndarray, " some"], n_tokens: Int[np.ndarray, " some"]
    ) -> Int[np.ndarray, " place"]:
        """Return the places of the tokens of ``rows`` from ``first`` on, row after row.

        Args:
            rows: by index, in any order, each as often as wanted.
            first: for each of them the position it begins with.
            n_tokens: for each of them how many positions.
        """
        return ranges(self.origin[rows] + first, n_tokens)

    @property
    def predicting(self) -> Int[np.ndarray, "row place"]:
        """The places whose logits are read: each row's last, as many as any row asks for.

        A row that computes fewer has its first place more than once.
        """
        back = np.arange(max(row.n_predicting for row in self.rows))[::-1]
        last = np.array([[len(row.tokens) - 1] for row in self.rows], dtype=np.int64)
        first = np.array([[row.first] for row in self.rows], dtype=np.int64)
        places: np.ndarray = self.origin[:, None] + np.maximum(last - back, first)
        return places


@dataclass(frozen=True)
class Capture:
    """What a forward pass of suffixes read.

    ``sites[layer][key]`` is the tensor of a site as the model has it; `at` views it by token. ``logits`` is (row,
    vocab), each row at its own last position; or (row, place, vocab) where rows read more of their last ones. With a
    graph, all of them are connected to the first site's tensors.
    """

    layout: Layout
    sites: list[dict[SiteKey, Float[Tensor, "..."]]]
    logits: Float[Tensor, "row *place vocab"]

    def at(self, layer: int, site: Site, dimensions: Dimensions) -> Float[Tensor, "token head feature"]:
        """Return the activations of a site of a layer, by place."""
        return by_token(self.sites[layer][site.key], site, dimensions)


def by_token(values: Float[Tensor, "..."], site: Site, dimensions: Dimensions) -> Float[Tensor, "token head feature"]:
    """View a site's tensor, or the gradient on it, as (token, head, feature)."""
    return site.view(values, dimensions).flatten(0, 1)


@dataclass(frozen=True)
class Edit:
    """Activations of one site that are replaced."""

    site: Site
    layer: int
    row: Index
    """In the layout of the pass, as ``position``."""
    position: Index
    head: Index
    value: Float[Tensor, "edit feature"]

    def apply(self, model: LoadedModel, activation: Float[Tensor, "..."]) -> None:
        """Replace them in the tensor of the site."""
        row, position, head = (of.on(activation.device) for of in (self.row, self.position, self.head))
        replace_heads(model, self.site, activation, (row, position, head), self.value.to(activation))


class Passes(ABC):
    """Forward passes of a model over suffixes; keeps what prefixes were computed to."""

    padded: bool
    """Whether all rows of a pass take as many positions as the longest."""
    pass_tokens = 64
    """What a pass costs whatever it computes, in positions; a budget that measures it says better."""

    def __init__(self, model: LoadedModel) -> None:
        """Pass suffixes through ``model``."""
        self.model = model

    @abstractmethod
    def begin(self, pairs: Sequence[EncodedPair]) -> None:
        """Be told all pairs that micro-batches will be made of."""

    @abstractmethod
    def together(self, pairs: Sequence[EncodedPair]) -> list[list[EncodedPair]]:
        """Divide pairs into those that one micro-batch may hold, in an order in which they share much."""

    @abstractmethod
    def prepare(self, pairs: Sequence[EncodedPair]) -> None:
        """Be told the pairs of the next micro-batch; prefixes that they do not have are forgotten."""

    @abstractmethod
    def hold(
        self, rows: Sequence[Row], sites: Sequence[Site], vocabulary: Sequence[int] | None, *, graph: bool = False
    ) -> Capture:
        """Compute rows and hold their keys and values: rows of later passes may begin anywhere in them.

        Until `prepare` is called again. Where passes are padded, all rows of such a pass begin at one position.

        Args:
            rows: the rows.
            sites: what is read, as by `forward`.
            vocabulary: as for `forward`.
            graph: as for `forward`; what is held has none.
        """

    @abstractmethod
    def layout(self, rows: Sequence[Row]) -> Layout:
        """Arrange rows for a pass."""

    @abstractmethod
    def _call(
        self, layout: Layout, *, graph: bool = False, twice: bool = False
    ) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """Return the arguments of a call of the model, and what is to hold during it.

        Prefixes of the rows that are not there yet are computed. With ``twice`` the graph has second derivatives.
        Without ``graph`` nothing that the pass makes is kept for a gradient.
        """

    def forward(
        self,
        layout: Layout,
        sites: Sequence[Site],
        *,
        graph: bool,
        twice: bool = False,
        start: Float[Tensor, "token d_model"] | None = None,
        first_layer: int = 0,
        edits: Sequence[Edit] = (),
        vocabulary: Sequence[int] | None = None,
    ) -> Capture:
        """Pass the suffixes of rows through the model and read ``sites`` at every layer.

        Args:
            layout: the rows.
            sites: what is read, in the order of the forward pass.
            graph: require gradients from the first site on; parameters stay frozen, so nothing before it is
                differentiated.
            twice: let the gradients have gradients; takes more memory.
            start: what enters ``first_layer``, in place of what the suffixes' tokens would give.
            first_layer: the layers before it are not computed.
            edits: what is replaced; those of a layer in the order of the forward pass.
            vocabulary: give the logits of these tokens alone.
        """
        model = self.model
        inputs, calling = self._call(layout, graph=graph, twice=twice)
        predicting = layout.predicting
        row, position = np.divmod(predicting.ravel(), layout.shape[1])
        kept, place = np.unique(position, return_inverse=True)
        inputs["logits_to_keep"] = on_device(kept, model.device)
        last = on_device(row * len(kept) + place, model.device)
        layers = model.traced.get(model.architecture.layers)
        by_key = {site.key: site for site in sites}
        edits_of: dict[int, list[Edit]] = {}
        for edit in edits:
            edits_of.setdefault(edit.layer, []).append(edit)
        n_layers = model.dimensions.n_layers if by_key else max(edits_of, default=-1) + 1
        read: list[dict[SiteKey, Tensor]] = []
        # On shards a pass without a graph would take another way through transformers, on which the output of a
        # row-parallel layer is read before its bias is added; with frozen parameters gradients may be on without a
        # graph.
        with torch.set_grad_enabled(graph or model.sharded), calling, model.traced.trace(**inputs):
            if start is not None and first_layer == 0:
                layers[0].input[:] = start.view(*layout.shape, -1)
            elif start is not None:
                for below in layers[:first_layer]:
                    skip_layer(model, below, start.view(*layout.shape, -1))
            for number in range(first_layer, n_layers):
                layer = layers[number]
                for edit in edits_of.get(number, ()):
                    activation = activation_at(model, layer, edit.site)
                    # In place: where the activation is also the skip connection's, both paths must take the edit.
                    edit.apply(model, activation)
                    put_back(model, layer, edit.site, activation)
                found = {}
                for key, site in by_key.items():
                    activation = activation_at(model, layer, site)
                    if graph and not activation.requires_grad:
                        activation.requires_grad_(True)
                    put_back(model, layer, site, activation)
                    found[key] = activation
                read.append(found)
            logits = row_logits(model, last, vocabulary)
        n_places = predicting.shape[1]
        return Capture(layout, read, logits if n_places == 1 else logits.view(-1, n_places, logits.shape[-1]))

    def start(self, layout: Layout) -> Float[Tensor, "token d_model"]:
        """Return what enters the first layer, by place; no layer is computed."""
        inputs, calling = self._call(layout)
        first = self.model.traced.get(self.model.architecture.layers)[0]
        with torch.no_grad(), calling, self.model.traced.trace(**inputs) as tracer:
            start: Tensor = first.input.save()
            tracer.stop()
        return start.flatten(0, 1)


def row_logits(
    model: LoadedModel, last: Int[Tensor, " row"], vocabulary: Sequence[int] | None = None
) -> Float[Tensor, "row vocab"]:
    """Read the logits at the places ``last`` of those that a call keeps, within its trace, after all layers.

    With ``vocabulary`` they are those of these tokens, in that order and in float32 at least; whatever the model does
    to logits after the unembedding, it does to them. A shard holds part of the unembedding, and gives all logits.
    """
    if model.sharded:
        logits = model.traced.output.logits.flatten(0, 1)
        return cast("Tensor", logits.index_select(0, last.to(logits.device)).save())
    unembedding = model.traced.get(model.architecture.unembedding)
    # Rows of their own: a matrix product with slices of the residual stream goes row by row, at a tenth of the speed;
    # for a small model that is more than all its layers take.
    hidden = unembedding.input.flatten(0, 1)
    hidden = hidden.index_select(0, last.to(hidden.device)).unsqueeze(0)
    if vocabulary is None:
        unembedding.input = hidden
    else:
        linear = model.module.get_submodule(model.architecture.unembedding)
        index = on_device(np.array(vocabulary), linear.weight.device)
        bias = None if linear.bias is None else at_least_float32(linear.bias[index])
        # A narrow type's steps are as large as the differences between answers that are to be told apart.
        narrow = torch.nn.functional.linear(at_least_float32(hidden), at_least_float32(linear.weight[index]), bias)
        unembedding.skip(narrow)
    return cast("Tensor", model.traced.output.logits[0].save())
