"""Scoring where the model is: the engine travels with a request, and scores come back.

A request is one nnsight session. Its body calls the same engine that scores a local model, so micro-batches, shared
prefixes, the isolation of bad pairs and every method are the same code; nnsight ships the functions as source. Scores
are reduced on the server: what comes back is one number for each component, layer, head and suffix position, and two
metrics for each pair.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from attrib_batch.attribution.engine import FailedPair, Outcome, ScoredBatch, TokenBudget, score_groups
from attrib_batch.attribution.groups import MethodGroup, group_methods
from attrib_batch.attribution.metrics import metric_named
from attrib_batch.attribution.references import Means
from attrib_batch.attribution.scores import ActivationSums, BatchScores
from attrib_batch.models.families import Architecture, Dimensions
from attrib_batch.models.load import LoadedModel
from attrib_batch.ndif.model import RemoteModel
from attrib_batch.ndif.server import PACKAGES_THERE
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import Component, MethodSpec
from attrib_batch.tables import FailureReason

PACKAGE = "attrib_batch"
BATCH_TOKENS = 8192
"""Suffix positions of a micro-batch where a job leaves them open: what memory a server has is not known here."""
RESULT = "answer"
"""The variable of the session that holds what comes back."""

Answer = dict[str, Any]
"""Plain types and arrays alone: the server knows none of this package's classes once a request has ended."""


def ask(
    model: RemoteModel,
    pairs: Sequence[EncodedPair],
    methods: Sequence[MethodSpec],
    *,
    batch_tokens: int,
    backend: Any,
    means: Means | None = None,
) -> Answer | None:
    """Send one request that scores ``pairs`` by every method.

    Args:
        model: the model, without weights.
        pairs: pairs of any shapes.
        methods: methods that share forward passes.
        batch_tokens: most suffix positions in a micro-batch on the server.
        backend: nnsight's, which sends the request.
        means: mean activations of the dataset, for methods whose reference they are; they travel with the request.

    Returns:
        What came back, where the backend waits for it; None otherwise.
    """
    import nnsight

    for method in methods:
        metric_named(method.metric)  # one's own metric must be loaded here to travel
    groups = group_methods(methods, means)
    _let_travel([*(group.function for group in groups), *(site.view for site in model.architecture.sites.values())])
    traced, architecture, dimensions = model.traced, model.architecture, model.dimensions
    given = list(pairs)
    answer: Answer | None = None
    with traced.session(backend=backend):
        answer = score_on_server(
            traced, architecture, dimensions, pairs=given, groups=groups, batch_tokens=batch_tokens
        )
        nnsight.save(answer)
    return answer


def _let_travel(functions: Iterable[Callable[..., Any]]) -> None:
    """Have this package sent as source, and those of methods and families of one's own: the server has none of them."""
    import nnsight

    packages = {function.__module__.partition(".")[0] for function in functions if inspect.isfunction(function)}
    for package in {PACKAGE} | packages - {"nnsight", *PACKAGES_THERE}:
        nnsight.register(package)


def score_on_server(
    traced: Any,
    architecture: Architecture,
    dimensions: Dimensions,
    *,
    pairs: list[EncodedPair],
    groups: list[MethodGroup],
    batch_tokens: int,
) -> Answer:
    """Do the work of a request: score with the server's own model, and pack the outcomes."""
    module = traced._module
    weight = module.get_input_embeddings().weight
    model = LoadedModel(
        traced, module, traced.tokenizer, architecture, dimensions, weight.device, may_replace_attention=False
    )
    scored: list[Answer] = []
    failed: list[Answer] = []
    for method, outcome in score_groups(model, pairs, groups, TokenBudget(batch_tokens)):
        if isinstance(outcome, ScoredBatch):
            scored.append(
                {
                    "method": method.id,
                    "pair_ids": [pair.pair_id for pair in outcome.pairs],
                    "scores": {str(component): values for component, values in outcome.result.scores.items()},
                    "clean_metric": outcome.result.clean_metric,
                    "corrupted_metric": outcome.result.corrupted_metric,
                    "positions": outcome.result.positions,
                    "estimates": {str(name): values for name, values in (outcome.result.estimates or {}).items()},
                    "sums": vars(outcome.result.sums) if outcome.result.sums else None,
                }
            )
        else:
            failed.append(
                {
                    "method": method.id,
                    "pair_id": outcome.pair.pair_id,
                    "reason": str(outcome.reason),
                    "message": outcome.message,
                    "attempts": outcome.attempts,
                }
            )
    return {"scored": scored, "failed": failed, "dtype": str(weight.dtype).removeprefix("torch.")}


def outcomes(
    answer: Answer, pairs: Sequence[EncodedPair], methods: Sequence[MethodSpec]
) -> Iterator[tuple[MethodSpec, Outcome]]:
    """Unpack what a request found, as the engine itself would have given it.

    Args:
        answer: what came back.
        pairs: the pairs that were sent.
        methods: the methods that are wanted, all or some of those that were asked.
    """
    pair_of = {pair.pair_id: pair for pair in pairs}
    method_of = {method.id: method for method in methods}
    for batch in answer["scored"]:
        if batch["method"] not in method_of:
            continue
        result = BatchScores(
            {Component(name): values for name, values in batch["scores"].items()},
            batch["clean_metric"],
            batch["corrupted_metric"],
            batch["positions"],
            {Component(name): values for name, values in batch["estimates"].items()} or None,
            ActivationSums(**batch["sums"]) if batch["sums"] else None,
        )
        yield method_of[batch["method"]], ScoredBatch([pair_of[pair_id] for pair_id in batch["pair_ids"]], result)
    for failure in answer["failed"]:
        if failure["method"] not in method_of:
            continue
        yield (
            method_of[failure["method"]],
            FailedPair(
                pair_of[failure["pair_id"]],
                FailureReason(failure["reason"]),
                failure["message"],
                failure["attempts"],
            ),
        )
