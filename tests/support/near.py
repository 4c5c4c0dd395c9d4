"""How near two computations of the same scores must be, from the size of what is added up in them.

Sums in another order (another processor, other kernels, a batch of another size, shards) round differently. What
follows says by how much, on every machine; a comparison of scores, metrics or logits takes its tolerance from here.

**The bound.** Let u = eps / 2 be the unit roundoff. One operation on an activation a returns a (1 + d) with |d| of the
order of u: a matrix product of n terms has an error of at most n u times the sum of the terms' magnitudes, and of a few
u times it with sums by blocks and errors of random sign (Higham, Accuracy and Stability of Numerical Algorithms,
sections 3.1 and 4.2). To first order an error of d_f a_f in every feature f of an activation moves the metric by

    sum over f of g_f d_f a_f,    at most max |d| times  T(a) = sum over f of |g_f a_f|

with g the metric's gradient on a. A score is a change of the metric, as ``exact`` measures it, or the first order of
one: g . (a_other - a_base), whose own terms are at most |g_f| (|a_other f| + |a_base f|). Hence

    T = the largest, over the activations of the pair, of  sum over f of |g_f| (|a_clean f| + |a_corrupted f|)

and each of N operations one after the other moves metric and scores by about eps T. The errors have random signs, so N
of them amount to sqrt(N) eps T. A layer is some six operations forward and as many backward (norm, projections,
attention, projection, MLP in, MLP out): 3 layers make 36, the 30 of the bundled model 360. ``STEPS`` is
sqrt(1024) = 32: a thousand operations.

T is one number for a pair and a metric. It is not taken per component or per score: an error made anywhere reaches
every score whose run or gradient passes there, and a small score has no smaller errors than a large one beside it. (In
SmolLM2 the terms of keys add up to half of what the residual stream's do, while their scores are 100 times smaller.)

**Metrics that are not linear in the logits** (probabilities, their logarithms, KL) have gradients that change with the
logits: an error of eps T' of a logit, T' being the terms of that logit, changes every score by that share of it. So
T' times the largest score is added to T. ``tests.support.terms`` computes all this from a model.

**Where no model is at hand** (tables that a run has written) T is estimated: n terms of random sign add up to about
1 / sqrt(n) of their magnitudes' sum, and |a_other| + |a_base| is about twice |a_other - a_base|. So T is about
2 sqrt(n) times the largest of a pair's scores (all components together), metrics and metrics' difference.

**Float64 models.** The same with their eps. Scores are summed over features and stored in float32 whatever the model
is, which adds sqrt(n) eps32 of the largest score (``SUMMED``). And most families compute norms and softmax in float32
even then. Two runs give them nearly the same float64 numbers, which nearly always round alike; a few do not, and cost
together about one operation in float32, eps32 T.

**How much is used**: against float64, over 12 architectures, four metrics, both directions and all components, the
largest error of a float32 score was 4.8 eps T (atp), 6.3 (atp_ig), 2.0 (atp_star), 1.3 (exact), without the addition
for metrics that are not linear, and 1.3 on SmolLM2 with logit_diff. At the end of a session pytest prints how much its
own comparisons used; ``make test-kernels`` does so for several kernels. What is still seen: ``tests/test_near.py``.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.tiny_models import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Mapping

STEPS = 32.0
"""eps times the terms' magnitudes, this often: the rounding of a thousand operations in turn."""
SUMMED = 8.0
"""sqrt(features) of the tiny models, about: what summing a score in float32 loses beside float64 activations."""
WORTH = 10.0
"""A component is compared in earnest if its largest score is so many tolerances."""
FLOAT32 = float(np.finfo(np.float32).eps)


def estimated_terms(*numbers: Any, width: int = HIDDEN) -> float:
    """Return the size of what was added up in a pair's scores and metrics, from these alone (see the module).

    Args:
        numbers: all that is known of the pair: arrays of scores of every component, and both metrics.
        width: the features of an activation.
    """
    return 2 * math.sqrt(width) * max(float(np.abs(_array(number)).max()) for number in numbers)


def tolerance(
    terms: Any, *, dtype: str = "float32", float32_steps: float = 1.0, largest: float = 0.0, truncation: Any = 0.0
) -> Any:
    """Return by how much two computations may differ.

    Args:
        terms: the size of what is added up, one number or one for each number that is compared.
        dtype: the precision of the model.
        float32_steps: what a float64 model loses where it computes in float32 nonetheless, in operations; GPT-2 does so
            nowhere.
        largest: the largest of the numbers, if they are kept in float32.
        truncation: what the two differ by in exact arithmetic, such as a finite difference from the slope; the caller
            says why.
    """
    steps = STEPS * float(np.finfo(dtype).eps) + (float32_steps * FLOAT32 if dtype == "float64" else 0.0)
    return steps * np.asarray(terms) + SUMMED * FLOAT32 * largest + truncation


def assert_near(
    ours: Any,
    theirs: Any,
    terms: Any,
    *,
    dtype: str = "float32",
    float32_steps: float = 1.0,
    truncation: Any = 0.0,
    what: str = "numbers",
) -> None:
    """Raise AssertionError where two computations of the same numbers differ by more than rounding.

    Args:
        ours: an array, tensor or number.
        theirs: the same, of the same shape.
        terms: the size of what is added up: ``largest_terms`` or ``estimated_terms``.
        dtype: the precision of the model that both were computed with.
        float32_steps: see ``tolerance``.
        truncation: see ``tolerance``.
        what: named in the message.
    """
    mine, others = _array(ours), _array(theirs)
    assert mine.shape == others.shape, f"{what}: the shapes are {mine.shape} and {others.shape}"
    assert np.isfinite(mine).all(), f"{what}: not finite"
    assert np.isfinite(others).all(), f"{what}: not finite"
    largest = float(np.abs(others).max())
    allowed = tolerance(terms, dtype=dtype, float32_steps=float32_steps, largest=largest, truncation=truncation)
    error = np.abs(mine - others)
    share = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=np.asarray(allowed) > 0)
    worst = np.unravel_index(int(share.argmax()), share.shape)
    assert share[worst] <= 1, (
        f"{what}: {mine[worst]!r} and {others[worst]!r} at {tuple(map(int, worst))} differ by {error[worst]:.3g}, "
        f"{share[worst]:.3g} times the rounding of terms of {float(np.max(terms)):.3g} in {dtype}"
    )
    if not np.any(truncation):
        used.append((dtype, float(share[worst]), os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]))


def assert_same_scores(
    ours: Mapping[Any, Any], theirs: Mapping[Any, Any], terms: float, *, dtype: str = "float32", truncation: float = 0.0
) -> None:
    """Raise AssertionError unless every component of ``theirs`` is the same in ``ours`` but for rounding.

    A component is refused, too, whose scores are so small beside the rounding that the comparison says little: zeros
    might pass. ``truncation`` is a share of each component's largest score.
    """
    assert set(ours) == set(theirs)
    for component, scores in theirs.items():
        largest = float(np.abs(_array(scores)).max())
        worth = WORTH * float(tolerance(terms, dtype=dtype))
        assert largest > worth, f"{component}: scores of {largest:.3g} say nothing beside a rounding of {worth:.3g}"
        assert_near(
            ours[component], scores, terms, dtype=dtype, truncation=truncation * largest, what=f"scores of {component}"
        )


used: list[tuple[str, float, str]] = []
"""For every comparison that passed on rounding alone: precision, largest error as a share of the tolerance, test."""


def most_used() -> str | None:
    """Return a line on the comparisons that came nearest to their tolerance, None if there were none."""
    if not used:
        return None
    nearest = [max(one for one in used if one[0] == dtype) for dtype in sorted({one[0] for one in used})]
    shares = ", ".join(f"{share:.1%} in {dtype} ({test})" for dtype, share, test in nearest)
    return f"rounding: {len(used)} comparisons used at most of what is allowed {shares}"


def _array(numbers: Any) -> np.ndarray:
    """Numbers as float64, whatever holds them."""
    if hasattr(numbers, "detach"):
        numbers = numbers.detach().cpu().numpy()
    return np.atleast_1d(np.asarray(numbers, dtype=np.float64))
