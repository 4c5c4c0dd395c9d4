"""Methods, metrics and model families, from their registries."""

from __future__ import annotations

from attrib_batch.pairs.advice import ADVICE
from attrib_batch.spec import Component
from attrib_batch.spec.registries.methods import BUILT_IN_METHODS
from attrib_batch.spec.registries.metrics import METRICS
from attrib_batch.tables.schema import FailureReason
from docs.reference.markdown import code, table

AT_WORK = {
    FailureReason.NON_FINITE: "Score in float32, not in half precision; what stays is a property of model and prompt.",
    FailureReason.SCORING_ERROR: "The message has the exception; other pairs were scored by the same code.",
    FailureReason.WORKER_LOST: (
        "The pair ended its worker twice while it was alone there, by a crash, by memory or by time: shorten it, give "
        "workers more memory, and run again with --retry-failures."
    ),
}
"""What to do about pairs that failed while a model ran; for the others see `attrib_batch.pairs.advice`."""


def registries_page() -> str:
    """Return the page: what a job may name, and what it means."""
    parts = ["# Methods, metrics, components", "What a job may name, from the registries that runs read."]
    parts.append("## Methods")
    for entry in BUILT_IN_METHODS.values():
        parts += [
            f"### `{entry.kind}`",
            entry.explain({}),
            table(
                ("", ""),
                [
                    ("cost of a pair, in forward passes", entry.cost),
                    ("gradient taken at", entry.gradient_at.value),
                    ("scores", "magnitudes" if entry.magnitudes else "effects with a sign"),
                    ("parameters", ", ".join(code(name) for name in entry.parameters.model_fields) or "none"),
                    ("paper", entry.paper),
                ],
            ),
        ]
    metrics = [
        (code(entry.name), entry.unit, entry.explanation, entry.paper, "yes" if entry.lower_is_cleaner else "")
        for entry in METRICS.values()
    ]
    parts += ["## Metrics", table(("name", "unit", "what it measures", "paper", "lower is cleaner"), metrics)]
    parts += [
        "## Components",
        "In the order of the forward pass within a layer.",
        table(
            ("name", "one score per"),
            [
                (code(component), "layer, head and position" if component.has_heads else "layer and position")
                for component in Component
            ],
        ),
    ]
    parts += [
        "## Reasons of failures",
        "The column `error` of the failures. `message` says what it was for a pair.",
        table(("reason", "what to do"), [(code(reason), ({**ADVICE, **AT_WORK})[reason]) for reason in FailureReason]),
    ]
    return "\n\n".join(parts) + "\n"
