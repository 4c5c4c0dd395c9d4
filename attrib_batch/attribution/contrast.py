"""What the methods have in common: both prompts of every pair, and the metric that compares them.

Scores patch activations of one prompt of a pair, the *other*, into the forward pass of its *base*: denoising takes the
corrupted prompt as the base and the clean prompt as the other; noising is the mirror.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib_batch.attribution.batches import Row, base_and_other, rows_of
from attrib_batch.attribution.entries import Entries
from attrib_batch.attribution.method import Method
from attrib_batch.attribution.metrics import AnswerSets, Metric, at_least_float32, metric_named
from attrib_batch.attribution.passes import Passes
from attrib_batch.attribution.passes.places import Index
from attrib_batch.attribution.references import Replacement, ablated_logits
from attrib_batch.attribution.scores import Scores
from attrib_batch.models.families import Site
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component
from attrib_batch.spec.registries.metrics import metric_entry


def sites_in_order(model: LoadedModel, components: Sequence[Component]) -> dict[Component, Site]:
    """Return the sites of ``components`` in the order of the forward pass.

    Raises:
        ModelError: the architecture does not have one of them.
    """
    sites = {component: model.architecture.site(component, model.model_type) for component in components}
    return {component: sites[component] for component in model.architecture.sites if component in sites}


def vocabulary_of(model: LoadedModel, pairs: Sequence[EncodedPair], methods: Sequence[Method]) -> list[int] | None:
    """Return the tokens whose logits the metrics of ``methods`` need, None for all."""
    if model.sharded or not all(metric_entry(method.metric).of_answers_alone for method in methods):
        return None
    return sorted({token for pair in pairs for token in (*pair.answers, *pair.wrong_answers)})


@dataclass(frozen=True)
class Objective:
    """The metric of the pairs of a micro-batch, and its values on their two prompts."""

    metric: Metric
    answers: AnswerSets
    clean_logits: Float[Tensor, "pair *place vocab"]
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    base: Float[Tensor, " pair"]
    """The metric on the base prompt: ``clean`` or ``corrupted``."""

    @classmethod
    def of(
        cls,
        method: Method,
        pairs: Sequence[EncodedPair],
        base_logits: Float[Tensor, "pair *place vocab"],
        other_logits: Float[Tensor, "pair *place vocab"],
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

    def __call__(self, logits: Float[Tensor, "row *place vocab"], pair: Index) -> Float[Tensor, " row"]:
        """Compute the metric of rows that belong to the pairs at ``pair``."""
        return self.metric(logits, pair.take(self.clean_logits), self.answers.select(pair.on(logits.device)))

    def with_scores(
        self,
        scores: Mapping[Component, Float[Tensor, "layer entry head"]],
        count: Int[np.ndarray, " pair"],
        positions: Int[np.ndarray, " entry"] | None = None,
    ) -> Scores:
        """Return the result of a method on the CPU, in one transfer; ``count`` and ``positions`` as in `Scores`."""
        names = list(scores)
        # Half precision is summed in single precision; double precision is stored in single.
        flat = [scores[name].float().reshape(-1) for name in names]
        metrics = torch.stack([self.clean, self.corrupted])
        together = torch.cat([*flat, metrics.float().reshape(-1)]).cpu().numpy()
        if metrics.dtype != torch.float32:
            metrics = metrics.double().cpu()
            clean, corrupted = metrics.numpy()
        else:
            clean, corrupted = together[len(together) - metrics.numel() :].astype(np.float64).reshape(2, -1)
        ends = np.cumsum([len(values) for values in flat])
        parts = np.split(together[: ends[-1]], ends[:-1])
        return Scores(
            {name: part.reshape(scores[name].shape) for name, part in zip(names, parts, strict=True)},
            count,
            clean,
            corrupted,
            positions,
        )


@dataclass(frozen=True)
class Contrast:
    """Both prompts of every pair of a micro-batch, computed without a graph."""

    entries: Entries
    base_rows: list[Row]
    """In the order of the pairs, as ``other_rows``."""
    other_rows: list[Row]
    replacement: Replacement | None
    """What stands in place of the other prompts' activations, if anything does."""
    difference: list[dict[Component, Float[Tensor, "entry head feature"]]]
    """``difference[layer][component]``: the other prompt's activation, or the replacement, minus the base's."""
    objective: Objective
    vocabulary: list[int] | None
    """The tokens whose logits it is of, None for all."""

    @classmethod
    def of(
        cls, passes: Passes, pairs: Sequence[EncodedPair], method: Method, sites: Mapping[Component, Site]
    ) -> Contrast:
        """Compute both prompts of pairs; a prompt that occurs more than once is computed once."""
        entries, dimensions = Entries.of(pairs), passes.model.dimensions
        row_with = rows_of(pairs)
        base_rows, other_rows = (
            [row_with[tokens] for tokens in of]
            for of in zip(*(base_and_other(pair, method.direction) for pair in pairs), strict=True)
        )
        distinct = list(dict.fromkeys([*base_rows, *other_rows]))
        layout = passes.layout(distinct)
        row_of = {row: index for index, row in enumerate(distinct)}
        base, other = ([row_of[row] for row in of] for of in (base_rows, other_rows))
        vocabulary = vocabulary_of(passes.model, pairs, [method])
        passed = passes.forward(layout, list(sites.values()), graph=False, vocabulary=vocabulary)
        at_base, at_other = entries.index(base, layout), entries.index(other, layout)
        base_logits, other_logits = (Index(np.array(of)).take(passed.logits) for of in (base, other))
        replacement = None
        if method.reference is not None:
            other_logits = ablated_logits(passes, pairs, sites, method.reference, vocabulary)
            replacement = method.reference.at(pairs, entries)
        return cls(
            entries,
            base_rows,
            other_rows,
            replacement,
            difference=[
                {
                    component: subtract(
                        at_other.take(values) if replacement is None else replacement.of(component, layer, here), here
                    )
                    for component, site in sites.items()
                    for values in (passed.at(layer, site, dimensions),)
                    for here in (at_base.take(values),)
                }
                for layer in range(dimensions.n_layers)
            ],
            objective=Objective.of(method, pairs, base_logits, other_logits, vocabulary),
            vocabulary=vocabulary,
        )


def subtract(
    other: Float[Tensor, "entry head feature"], base: Float[Tensor, "entry head feature"]
) -> Float[Tensor, "entry head feature"]:
    """Subtract activations in single precision at least: a narrow type would round the difference again."""
    return at_least_float32(other) - at_least_float32(base)
