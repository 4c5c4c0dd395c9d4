"""The metrics: what is measured on the last position's logits, once each.

A metric maps logits of shape (pair, vocab) to one number per pair, differentiably. Answers are sets: several right and
several wrong continuations. Scores are in the metric's units.

A metric of one's own is a function of the same kind, known by a name: an installed package offers it in the entry-point
group ``attrib_batch.metrics``, or a Python program calls ``register_metric``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from attrib_batch.errors import JobError
from attrib_batch.models.devices import on_device
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import MethodSpec
from attrib_batch.spec.registries.entry_points import load_offered, load_reference, offered
from attrib_batch.spec.registries.methods import method_entry
from attrib_batch.spec.registries.metrics import METRIC_GROUP, METRICS, known_metrics, registered_names


@dataclass(frozen=True)
class AnswerSets:
    """Token ids of the answers of a batch of pairs, padded to a rectangle; the masks say which entries are real."""

    right: Int[Tensor, "pair answer"]
    right_mask: Bool[Tensor, "pair answer"]
    wrong: Int[Tensor, "pair wrong"]
    wrong_mask: Bool[Tensor, "pair wrong"]

    @classmethod
    def of(
        cls, pairs: Sequence[EncodedPair], device: torch.device, vocabulary: Sequence[int] | None = None
    ) -> AnswerSets:
        """Return the answers of ``pairs``, in their order; with ``vocabulary`` as places in it."""
        place = None if vocabulary is None else {token: index for index, token in enumerate(vocabulary)}
        right, right_mask = _rectangle([_places(pair.answers, place) for pair in pairs], device)
        wrong, wrong_mask = _rectangle([_places(pair.wrong_answers, place) for pair in pairs], device)
        return cls(right, right_mask, wrong, wrong_mask)

    def select(self, index: Int[Tensor, " row"]) -> AnswerSets:
        """Return the answers of the pairs at ``index``."""
        return AnswerSets(self.right[index], self.right_mask[index], self.wrong[index], self.wrong_mask[index])


def _places(tokens: Sequence[int], place: Mapping[int, int] | None) -> Sequence[int]:
    return tokens if place is None else [place[token] for token in tokens]


def _rectangle(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "pair answer"], Bool[Tensor, "pair answer"]]:
    count = np.array([len(row) for row in rows])
    mask = np.arange(count.max()) < count[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = [token for row in rows for token in row]
    return on_device(ids, device), on_device(mask, device)


Metric = Callable[["Float[Tensor, 'pair vocab']", "Float[Tensor, 'pair vocab']", AnswerSets], "Float[Tensor, ' pair']"]
"""(logits, logits of the clean prompt without a graph, answers) -> one number per pair, at least in float32."""

SIGNATURE = (
    "a function (logits, clean_logits, answers): logits and clean_logits are float tensors (pair, vocabulary), answers "
    "has the token ids right and wrong, each (pair, answer), with right_mask and wrong_mask; it returns a finite float "
    "tensor (pair,), differentiable in logits"
)
"""What a metric of one's own is to be, in words."""
TRIED_PAIRS = 2
"""How many made-up pairs a metric of one's own is tried on."""


def logit_diff(
    logits: Float[Tensor, "pair vocab"],
    clean_logits: Float[Tensor, "pair vocab"],  # noqa: ARG001 - a Metric
    answers: AnswerSets,
) -> Float[Tensor, " pair"]:
    """Compute the mean logit of the right answers minus that of the wrong ones (logits)."""
    return _masked_mean(logits, answers.right, answers.right_mask) - _masked_mean(
        logits, answers.wrong, answers.wrong_mask
    )


def prob_diff(
    logits: Float[Tensor, "pair vocab"],
    clean_logits: Float[Tensor, "pair vocab"],  # noqa: ARG001 - a Metric
    answers: AnswerSets,
) -> Float[Tensor, " pair"]:
    """Compute the probability of the right answers together minus that of the wrong ones (probability, -1 to 1)."""
    log_probs = _log_probs(logits)
    return (
        _log_mass(log_probs, answers.right, answers.right_mask).exp()
        - _log_mass(log_probs, answers.wrong, answers.wrong_mask).exp()
    )


def log_prob(
    logits: Float[Tensor, "pair vocab"],
    clean_logits: Float[Tensor, "pair vocab"],  # noqa: ARG001 - a Metric
    answers: AnswerSets,
) -> Float[Tensor, " pair"]:
    """Compute the logarithm of the probability of the right answers together (nats, at most 0)."""
    return _log_mass(_log_probs(logits), answers.right, answers.right_mask)


def kl(
    logits: Float[Tensor, "pair vocab"],
    clean_logits: Float[Tensor, "pair vocab"],
    answers: AnswerSets,  # noqa: ARG001 - a Metric
) -> Float[Tensor, " pair"]:
    """Compute KL(p_clean || p), how far the prediction is from the clean prompt's (nats; at least 0, its value there).

    Its gradient on the clean prompt is 0, so no gradient taken there says anything; the job file refuses that.
    """
    clean = _log_probs(clean_logits)
    return (clean.exp() * (clean - _log_probs(logits))).sum(-1)


def sequence_log_prob(
    logits: Float[Tensor, "pair *place vocab"],
    clean_logits: Float[Tensor, "pair *place vocab"],  # noqa: ARG001 - as a Metric's
    answers: AnswerSets,
) -> Float[Tensor, " pair"]:
    """Compute the log-probability of a continuation, the right answer's tokens in their order (nats, at most 0).

    The logits are those of the last places of each row; the last of them predicts the last token. Of one place they may
    come without an axis of places.
    """
    logits = logits.reshape(len(logits), -1, logits.shape[-1])
    n_tokens = answers.right_mask.sum(-1, keepdim=True)
    place = logits.shape[1] - n_tokens + torch.arange(answers.right.shape[1], device=logits.device)
    row = torch.arange(len(logits), device=logits.device).unsqueeze(-1)
    # What is masked may be at any place.
    picked = _log_probs(logits)[row, place.clamp(0, logits.shape[1] - 1), answers.right]
    return picked.masked_fill(~answers.right_mask, 0.0).sum(-1)


_loaded: dict[str, Metric] = {}
"""Metrics by name, as far as they were asked for: what was loaded here travels with the code that computes them."""


def register_metric(name: str, function: Metric) -> None:
    """Make a metric of one's own known by name, in this process alone.

    Jobs parsed in this process may name it, and ``score_pairs`` here computes it. The workers of a run are other
    processes, which do not know it: for those, install a package that names the function in the entry-point group
    ``attrib_batch.metrics``.

    Args:
        name: what jobs call it.
        function: (logits, logits of the clean prompt, answers) -> one number per pair, differentiable in the logits.

    Raises:
        JobError: the name belongs to another metric.
    """
    if name in METRICS or name in _loaded or name in offered(METRIC_GROUP):
        raise JobError(f"a metric {name!r} exists already; choose another name")
    _loaded[name] = _checked(name, function)
    registered_names.add(name)


def metric_named(name: str) -> Metric:
    """Find the metric of that name: built in, registered in this process, or offered by an installed package.

    Raises:
        JobError: there is none, it cannot be loaded, or several packages claim the name.
    """
    if name not in _loaded:
        _loaded[name] = load_reference(METRICS[name].function) if name in METRICS else _load_own(name)
    return _loaded[name]


def _load_own(name: str) -> Metric:
    if name not in offered(METRIC_GROUP):
        raise JobError(
            f"metric {name!r} is not known in this process; known: {', '.join(known_metrics())}. A metric that workers "
            f"are to know is offered by an installed package, in the entry-point group {METRIC_GROUP!r}"
        )
    function, reference = load_offered(METRIC_GROUP, name, "metric")
    if not callable(function):
        raise JobError(f"metric {name!r}: {reference} is not a function. A metric is {SIGNATURE}")
    return _checked(name, function)


def try_metrics(methods: Iterable[MethodSpec], d_vocab: int) -> None:
    """Try every metric of one's own that methods name, as `try_metric` does.

    Raises:
        JobError: one cannot be used.
    """
    differentiated: dict[str, bool] = {}
    for method in methods:
        needed = method_entry(method.kind).differentiates
        differentiated[method.metric] = differentiated.get(method.metric, False) or needed
    for name, needs_gradient in differentiated.items():
        try_metric(name, d_vocab, needs_gradient=needs_gradient)


def try_metric(name: str, d_vocab: int, *, needs_gradient: bool) -> None:
    """Try a metric of one's own on made-up logits and answers; do nothing for one that is built in.

    Args:
        name: the metric.
        d_vocab: how many logits the model gives; at least 4.
        needs_gradient: whether a method differentiates it.

    Raises:
        JobError: it cannot be loaded, raises, or does not give finite numbers of the right shape and, where it is to be
            differentiated, with a finite gradient.
    """
    metric = metric_named(name)
    if name in METRICS:
        return
    generator = torch.Generator().manual_seed(0)
    logits, clean = (3 * torch.randn(2, TRIED_PAIRS, d_vocab, generator=generator)).unbind()
    # One pair with two right answers and one wrong one, one pair the other way round.
    ids, two, one = torch.arange(4).expand(TRIED_PAIRS, 4), torch.tensor([True, True]), torch.tensor([True, False])
    answers = AnswerSets(ids[:, :2], torch.stack([two, one]), ids[:, 2:], torch.stack([one, two]))
    gradient = None
    try:
        found = metric(logits.requires_grad_(), clean, answers)
        if needs_gradient and found.requires_grad:
            (gradient,) = torch.autograd.grad(found.sum(), logits, allow_unused=True)
    except JobError:
        raise
    except Exception as error:  # as its author's code, it may raise anything
        raise JobError(_unusable(name, f"raises {type(error).__name__}: {error}")) from error
    if not found.isfinite().all():
        raise JobError(_unusable(name, f"gives {found.tolist()}"))
    if needs_gradient and gradient is None:
        raise JobError(_unusable(name, "has no gradient: what it returns does not depend differentiably on logits"))
    if gradient is not None and not gradient.isfinite().all():
        raise JobError(_unusable(name, "has a gradient that is not finite"))


def _unusable(name: str, problem: str) -> str:
    return (
        f"metric {name!r} cannot be used: on made-up logits of {TRIED_PAIRS} pairs it {problem}. "
        f"A metric is {SIGNATURE}"
    )


def _checked(name: str, function: Metric) -> Metric:
    # No shapes here: the annotations of an inner function are evaluated on a server too, which has no jaxtyping.
    def metric(logits: Tensor, clean_logits: Tensor, answers: AnswerSets) -> Tensor:
        values = function(logits, clean_logits, answers)
        if not isinstance(values, Tensor):
            raise JobError(f"metric {name!r} gave a {type(values).__name__}. A metric is {SIGNATURE}")
        if values.shape != logits.shape[:1]:
            raise JobError(
                f"metric {name!r} gave the shape {tuple(values.shape)}, expected {tuple(logits.shape[:1])}. "
                f"A metric is {SIGNATURE}"
            )
        return at_least_float32(values)

    return metric


def _log_probs(logits: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place vocab"]:
    return at_least_float32(logits).log_softmax(-1)


def _log_mass(
    log_probs: Float[Tensor, "pair vocab"], index: Int[Tensor, "pair answer"], mask: Bool[Tensor, "pair answer"]
) -> Float[Tensor, " pair"]:
    """Compute the logarithm of the summed probability of the masked entries of ``index``."""
    return log_probs.gather(-1, index).masked_fill(~mask, -torch.inf).logsumexp(-1)


def _masked_mean(
    values: Float[Tensor, "pair vocab"], index: Int[Tensor, "pair answer"], mask: Bool[Tensor, "pair answer"]
) -> Float[Tensor, " pair"]:
    gathered = at_least_float32(values).gather(-1, index) * mask
    return gathered.sum(-1) / mask.sum(-1)


def at_least_float32(values: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to single precision, or keep double: half precision is too coarse for a metric or a score."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
