"""Which way a score points: towards the clean behaviour, away from it, or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrib_batch.spec.registries.methods import has_magnitudes
from attrib_batch.spec.registries.metrics import metric_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

NOISE = "noise"


def towards_clean(method: Mapping[str, Any], *, normalized: bool = False) -> int:
    """Return the sign of the scores of what brings about the clean behaviour; 1 for magnitudes.

    Under denoising such a score is positive; under noising, where it is taken away, negative. A metric that is lower
    for the clean prompt, such as KL, turns raw scores round; normalised ones are divided by its negative gap.

    Args:
        method: a method of a job.
        normalized: of normalised scores.
    """
    if has_magnitudes(method):
        return 1
    sign = -1 if method.get("direction") == NOISE else 1
    return -sign if not normalized and metric_entry(str(method.get("metric"))).lower_is_cleaner else sign
