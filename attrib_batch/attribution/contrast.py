"""What the methods have in common: both prompts of every pair, and the metric that compares them.

Scores patch activations of one prompt of a pair, the *other*, into the forward pass of its *base*: denoising takes the
corrupted prompt as the base and the clean prompt as the other; noising is the mirror.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from attrib_batch.attribution.batches import Tokens, base_and_other
from attrib_batch.attribution.forward import PrefixCache, forward_suffixes
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import AnswerSets, Metric, metric_named
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.models.families import Site, SiteKey
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component


def sites_in_order(model: LoadedModel, components: Sequence[Component]) -> dict[Component, Site]:
    """Return the sites of ``components`` in the order of the forward pass.

    Raises:
        ModelError: the architecture does not have one of them.
    """
    sites = {component: model.architecture.site(component, model.model_type) for component in components}
    return {component: sites[component] for component in model.architecture.sites if component in sites}


@dataclass(frozen=True)
class Objective:
    """The metric of the pairs of a micro-batch, and its values on their two prompts."""

    metric: Metric
    answers: AnswerSets
    clean_logits: Float[Tensor, "pair vocab"]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    base: Float[Tensor, " pair"]
    """The metric on the base prompt: ``clean`` or ``corrupted``."""

    @classmethod
    def of(
        cls,
        method: Method,
        pairs: Sequence[EncodedPair],
        base_logits: Float[Tensor, "pair vocab"],
        other_logits: Float[Tensor, "pair vocab"],
        vocabulary: Sequence[int] | None = None,
    ) -> Objective:
        """Build the objective of ``pairs`` from the logits of their prompts, for all tokens or for ``vocabulary``."""
        metric = metric_named(method.metric)
        denoise = method.direction == "denoise"
        clean_logits, corrupted_logits = (other_logits, base_logits) if denoise else (base_logits, other_logits)
        answers = AnswerSets.of(pairs, base_logits.device, vocabulary)
        with torch.no_grad():
            clean = metric(clean_logits, clean_logits, answers)
            corrupted = metric(corrupted_logits, clean_logits, answers)
        return cls(metric, answers, clean_logits, clean, corrupted, base=corrupted if denoise else clean)

    def __call__(self, logits: Float[Tensor, "row vocab"], pair: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Compute the metric of rows that belong to the pairs at ``pair``."""
        pair = pair.to(logits.device)
        return self.metric(logits, self.clean_logits[pair], self.answers.select(pair))

    def with_scores(
        self,
        scores: Mapping[Component, Float[Tensor, "layer pair head position"]],
        positions: Int[Tensor, "pair position"] | None = None,
    ) -> BatchScores:
        """Return the result of a method; ``positions`` as in `BatchScores`."""
        return BatchScores(
            scores={
                component: values.transpose(0, 1).float().contiguous().cpu().numpy()
                for component, values in scores.items()
            },
            clean_metric=self.clean.double().cpu().numpy(),
            corrupted_metric=self.corrupted.double().cpu().numpy(),
            positions=None if positions is None else positions.cpu().numpy(),
        )


@dataclass(frozen=True)
class Contrast:
    """Both prompts of every pair of a micro-batch, computed without a graph. Rows are in the order of the pairs."""

    prefix: PrefixCache
    base_rows: list[Tokens]
    other_rows: list[Tokens]
    difference: list[dict[SiteKey, Float[Tensor, "pair ..."]]]
    """``difference[layer][site key]``: the other prompt's activation minus the base's (pair, suffix position, ...)."""
    objective: Objective

    @classmethod
    def of(cls, model: LoadedModel, pairs: Sequence[EncodedPair], method: Method, sites: Sequence[Site]) -> Contrast:
        """Compute both prompts of pairs of one shape; a prompt that occurs more than once is computed once."""
        base_rows, other_rows = map(list, zip(*(base_and_other(pair, method.direction) for pair in pairs), strict=True))
        rows = list(dict.fromkeys([*base_rows, *other_rows]))
        row_of = {tokens: index for index, tokens in enumerate(rows)}
        base, other = (torch.tensor([row_of[tokens] for tokens in of]) for of in (base_rows, other_rows))
        prefix = PrefixCache(model, rows, pairs[0].first_difference)
        passed = forward_suffixes(model, rows, prefix, sites, graph=False)
        return cls(
            prefix=prefix,
            base_rows=base_rows,
            other_rows=other_rows,
            difference=[
                {key: rows_at(values, other) - rows_at(values, base) for key, values in layer.items()}
                for layer in passed.sites
            ],
            objective=Objective.of(method, pairs, rows_at(passed.logits, base), rows_at(passed.logits, other)),
        )


def rows_at(values: Shaped[Tensor, "row ..."], index: Int[Tensor, " pair"]) -> Shaped[Tensor, "pair ..."]:
    """Return the rows at ``index``, wherever ``values`` lies."""
    return values.index_select(0, index.to(values.device))
