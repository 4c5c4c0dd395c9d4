"""The metrics, written out: functions of the last position's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Metric = Callable[[Tensor], Tensor]


def logit_diff(right: Sequence[int], wrong: Sequence[int]) -> Metric:
    """Mean logit of the right answers minus mean logit of the wrong ones."""
    return lambda logits: logits[list(right)].mean() - logits[list(wrong)].mean()


def prob_diff(right: Sequence[int], wrong: Sequence[int]) -> Metric:
    """Probability of the right answers together minus that of the wrong ones together."""

    def metric(logits: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        return probabilities[list(right)].sum() - probabilities[list(wrong)].sum()

    return metric


def log_prob(right: Sequence[int]) -> Metric:
    """Logarithm of the probability of the right answers together, in nats."""
    return lambda logits: logits.softmax(-1)[list(right)].sum().log()


def kl(clean_logits: Tensor) -> Metric:
    """KL(p_clean || p) in nats: 0 where the distribution is the clean one, positive everywhere else.

    Its gradient on the clean run is therefore 0, and so is every first-order noising score.
    """
    clean = clean_logits.detach().softmax(-1)
    return lambda logits: (clean * (clean.log() - logits.log_softmax(-1))).sum()


def metric_of(name: str, right: Sequence[int], wrong: Sequence[int], clean_logits: Tensor) -> Metric:
    """The metric of a name, for one pair."""
    metrics = {
        "logit_diff": logit_diff(right, wrong),
        "prob_diff": prob_diff(right, wrong),
        "log_prob": log_prob(right),
        "kl": kl(clean_logits),
    }
    return metrics[name]
