"""What a page says in sentences about a cell: units, what a method computes, what colours mean, what to beware of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS = {"logit_diff": "logits", "prob_diff": "probability", "log_prob": "nats", "kl": "nats"}
_LOWER_IS_CLEANER = {"kl"}
_UNSIGNED = {"atp_star"}


def unit_of(metric: str) -> str:
    """The unit of a metric; for one of the user's own, its name."""
    return _UNITS.get(metric, f"units of {metric}")


def describe_method(method: Mapping[str, Any]) -> str:
    """What the numbers of a method are, and how far to trust them; empty for a kind unknown to this release."""
    steps = method.get("ig_steps")
    sentences = {
        "atp": (
            "Attribution patching: gradient times difference, a first-order estimate of what patching would do, close "
            "for attention heads and weaker for MLP outputs and the residual stream."
        ),
        "atp_ig": (
            f"Integrated gradients: as attribution patching, with the gradient averaged over {steps} points on the "
            "way between the two prompts; an estimate that saturation misleads less."
        ),
        "atp_star": (
            "AtP*: attribution patching with repairs for saturated attention and for effects that cancel. Its scores "
            "are magnitudes: they rank activations and say nothing about the direction of an effect."
        ),
        "exact": (
            "Activation patching: the measured effect of one replacement at a time. A sum over positions or heads adds "
            "separate replacements, which is not the effect of making them together."
        ),
    }
    return sentences.get(str(method.get("kind")), "")


def describe_scale(method: Mapping[str, Any]) -> str:
    """What normalised numbers and their colours mean."""
    if method.get("kind") in _UNSIGNED:
        return "0 is no effect and 1 the whole gap."
    if method.get("direction", "denoise") == "noise":
        return (
            "noising, so 0 is the clean behaviour and \N{MINUS SIGN}1 the corrupted one; what carries the behaviour "
            "is red."
        )
    return "denoising, so 0 is the corrupted behaviour and 1 the clean one; what restores the behaviour is blue."


def warning_about(baseline: Mapping[str, Any], method: Mapping[str, Any]) -> str | None:
    """What a reader must know before trusting a cell's numbers.

    Args:
        baseline: the cell's row of the baselines summary.
        method: the job's method.
    """
    if not baseline["scored"]:
        return "No pair of this cell has been scored, so there is nothing to draw."
    if not baseline["normalizable"]:
        return (
            "The clean and the corrupted prompts have the same mean metric, so scores cannot be normalised: maps and "
            "tables show raw means."
        )
    gap, sem = baseline["mean_difference"], baseline["sem_difference"]
    if sem is not None and abs(gap) < 2 * sem:
        return (
            "The gap between the clean and the corrupted metric is less than two standard errors, so normalised "
            "scores divide by a number that may well be 0. Trust the raw means."
        )
    if gap < 0 and method.get("kind") in _UNSIGNED:
        return "The gap is negative, so these magnitudes are negative where they are normalised."
    if gap < 0 and method.get("metric") not in _LOWER_IS_CLEANER:
        return (
            "The corrupted prompts have the higher mean metric. Normalised scores divide by this negative gap, so "
            "their signs are the reverse of the raw ones; check answers and wrong_answers in the dataset."
        )
    return None
