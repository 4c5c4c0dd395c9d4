"""The registry of metrics: one entry each, known without loading torch: a job file is checked where no model runs.

The functions are in ``attrib_batch.attribution.metrics``. A metric of one's own has no entry here: an installed package
offers its function in the entry-point group ``attrib_batch.metrics``, or a program registers it.
"""

from __future__ import annotations

from dataclasses import dataclass

from attrib_batch.spec.registries.entry_points import offered

METRIC_GROUP = "attrib_batch.metrics"
"""The entry-point group in which an installed package offers metrics of its own, by name."""


@dataclass(frozen=True)
class MetricEntry:
    """What is known of a metric beside how it is computed."""

    name: str
    """What jobs call it."""
    unit: str
    """The unit of its values and of scores, as the report writes it."""
    function: str
    """Where it is computed, as ``module:function``; empty for one that a program registered."""
    of_answers_alone: bool = False
    """Whether it reads the logits of the answers and no others."""
    whole_answers: bool = False
    """Whether it reads answers of any length, teacher-forced: every right and wrong one is a continuation of its own.

    Its function then gives the value of one continuation; a pair's is the mean over its right ones minus that over its
    wrong ones, and so are its scores.
    """
    flat_on_clean: bool = False
    """Whether its gradient on the clean prompt is 0, so that a gradient taken there says nothing."""
    lower_is_cleaner: bool = False
    """Whether it is smaller the nearer a prediction is to the clean prompt's."""
    explanation: str = ""
    """What it measures, as a sentence."""
    paper: str = ""
    """Where it was defined, if it has one source."""


_FUNCTIONS = "attrib_batch.attribution.metrics"

METRICS = {
    entry.name: entry
    for entry in (
        MetricEntry(
            "logit_diff",
            unit="logits",
            function=f"{_FUNCTIONS}:logit_diff",
            of_answers_alone=True,
            explanation="The mean logit of the right answers minus the mean logit of the wrong ones.",
            paper="Wang et al. 2022 (arXiv 2211.00593), section 2",
        ),
        MetricEntry(
            "prob_diff",
            unit="probability",
            function=f"{_FUNCTIONS}:prob_diff",
            explanation="The probability of the right answers together minus that of the wrong ones together.",
            paper="Hanna, Liu, Variengien 2023 (arXiv 2305.00586)",
        ),
        MetricEntry(
            "log_prob",
            unit="nats",
            function=f"{_FUNCTIONS}:log_prob",
            explanation="The logarithm of the probability of the right answers together.",
        ),
        MetricEntry(
            "kl",
            unit="nats",
            function=f"{_FUNCTIONS}:kl",
            flat_on_clean=True,
            lower_is_cleaner=True,
            explanation="The Kullback-Leibler divergence of a prediction from the clean prompt's, which is 0 there.",
        ),
        MetricEntry(
            "sequence_logprob_diff",
            unit="nats",
            function=f"{_FUNCTIONS}:sequence_log_prob",
            whole_answers=True,
            explanation=(
                "The mean log-probability of the right answers minus that of the wrong ones, each of one or more "
                "tokens, teacher-forced: the sum over its tokens, every one behind those before it. For answers of one "
                "token it is logit_diff."
            ),
        ),
    )
}
"""The built-in metrics, by name."""

registered_names: set[str] = set()
"""Names that ``register_metric`` added in this process."""


def known_metrics() -> list[str]:
    """Return every name a job may use in this process, the built-in ones first."""
    own = (registered_names | offered(METRIC_GROUP).keys()) - METRICS.keys()
    return [*METRICS, *sorted(own)]


def metric_entry(name: str) -> MetricEntry:
    """Return the entry of a metric; one that assumes nothing for a metric that is not built in."""
    return METRICS.get(name) or MetricEntry(name, unit=f"units of {name}", function="")


def check_metric_name(name: str) -> str:
    """Return the name, if it is a metric's.

    Raises:
        ValueError: naming the metrics there are.
    """
    # Packages are searched only for a name that is not built in: it reads the metadata of all of them.
    if name not in METRICS and name not in (known := known_metrics()):
        raise ValueError(f"expected the name of a metric ({', '.join(known)})")
    return name
