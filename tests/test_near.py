"""What counts as rounding and what does not: formulas that are slightly wrong are told from ones that are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import torch

from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.hooked_run import by_head, run
from tests.support.jobs import SCORE_KEYS
from tests.support.near import assert_near, assert_same_scores, estimated_terms, tolerance
from tests.support.same_tables import Tables, assert_same_numbers
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.terms import largest_terms, terms_of
from tests.support.tiny_models import ARCHITECTURES, N_LAYERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

[PAIR] = random_pairs(1, 9, 4)
METRIC = oracle.logit_diff(PAIR.answers, PAIR.wrong_answers)
TESTS = Path(__file__).parent


def build(name: str, small: bool) -> PreTrainedModel:
    """A tiny model; a small one's attention adds a hundredth of what it would, and so do its scores."""
    model = ARCHITECTURES[name]()
    if small:
        with torch.no_grad():
            for layer in model.model.layers if name == "llama" else model.transformer.h:
                (layer.self_attn.o_proj if name == "llama" else layer.attn.c_proj).weight.mul_(0.01)
    return model


@pytest.fixture(params=[("llama", False), ("gpt2", False), ("llama", True)], ids=["llama", "gpt2", "small attention"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(*request.param)


def products(model: PreTrainedModel, component: str, direction: str = "denoise") -> np.ndarray:
    """Gradient times difference: their sums over features are the scores; (layer, head, position, feature)."""
    own = component in {"q", "k", "v"}
    clean, corrupted = (run(model, ids, own_attention=own) for ids in (PAIR.clean, PAIR.corrupted))
    base, other = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    keys = [(component, layer) for layer in range(N_LAYERS)]
    gradients = torch.autograd.grad(METRIC(base.logits), [base.seen[key] for key in keys])
    found = [gradient * (other.seen[key] - base.seen[key]) for key, gradient in zip(keys, gradients, strict=True)]
    return np.stack([by_head(model, component, product).detach().numpy() for product in found])


def without_one_feature(model: PreTrainedModel, component: str) -> np.ndarray:
    return products(model, component)[..., :-1].sum(-1)


def without_one_layer(model: PreTrainedModel, component: str) -> np.ndarray:
    scores = products(model, component).sum(-1)
    scores[1] = 0
    return scores


def with_two_heads_swapped(model: PreTrainedModel, component: str) -> np.ndarray:
    return products(model, component).sum(-1)[:, [1, 0, *range(2, products(model, component).shape[1])]]


def in_the_other_direction(model: PreTrainedModel, component: str) -> np.ndarray:
    return products(model, component, "noise").sum(-1)


def one_position_on(model: PreTrainedModel, component: str) -> np.ndarray:
    return np.roll(products(model, component).sum(-1), 1, axis=-1)


def of_the_wrong_sign_in_one_layer(model: PreTrainedModel, component: str) -> np.ndarray:
    return products(model, component).sum(-1) * np.array([1, 1, -1])[:, None, None]


def all_zero(model: PreTrainedModel, component: str) -> np.ndarray:
    return np.zeros(products(model, component).shape[:-1])


@pytest.mark.parametrize("component", ["z", "q", "k", "v"])
@pytest.mark.parametrize(
    "wrong",
    [
        without_one_feature,
        without_one_layer,
        with_two_heads_swapped,
        in_the_other_direction,
        one_position_on,
        of_the_wrong_sign_in_one_layer,
        all_zero,
    ],
)
def test_a_wrong_formula_is_no_rounding(
    model: PreTrainedModel, wrong: Callable[[PreTrainedModel, str], np.ndarray], component: str
) -> None:
    right = oracle.atp(model, PAIR.clean, PAIR.corrupted, METRIC, [component], direction="denoise")
    terms = terms_of(model, PAIR)
    assert_same_scores({component: products(model, component).sum(-1)}, right, terms)
    with pytest.raises(AssertionError, match="times the rounding of terms"):
        assert_same_scores({component: wrong(model, component)}, right, terms)


@pytest.mark.parametrize(
    ("dtype", "of_one_weight", "of_one_matrix"), [("float32", 0.03, 3e-4), ("float64", 2e-3, 2e-5)]
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_slightly_wrong_weight_is_no_rounding(
    name: str, dtype: str, of_one_weight: float, of_one_matrix: float
) -> None:
    """Whichever matrix of a layer it is: its largest number alone, or all of it by a far smaller share."""
    model = build(name, small=False).to(getattr(torch, dtype))
    components = oracle.component_names(model)

    def scores() -> dict[str, np.ndarray]:
        return oracle.atp(model, PAIR.clean, PAIR.corrupted, METRIC, components, direction="denoise")

    right, terms = scores(), terms_of(model, PAIR)
    matrices = [weight for key, weight in model.named_parameters() if ".1." in key and weight.ndim == 2]
    assert len(matrices) >= 4
    for matrix in matrices:
        before = matrix.detach().clone()
        numbers = matrix.detach().view(-1)
        for which, share in ((int(numbers.abs().argmax()), of_one_weight), (slice(None), of_one_matrix)):
            numbers[which] *= 1 + share
            with pytest.raises(AssertionError, match="times the rounding of terms"):
                assert_same_scores(scores(), right, terms, dtype=dtype)
            matrix.detach().copy_(before)


def test_small_scores_beside_large_terms() -> None:
    """Like keys in the bundled model: the largest score is 0.0201, and terms add up to 65."""
    random = np.random.default_rng(0)
    features = random.standard_normal((30, 3, 14, 64))
    features *= 0.0201 / np.abs(features.sum(-1)).max()
    right, terms = {"k": features.sum(-1)}, 65.0
    assert_same_scores({"k": right["k"] + 2.98e-7 * random.choice([-1, 1], (30, 3, 14))}, right, terms)
    one_off = right["k"].copy()
    one_off.flat[int(np.abs(one_off).argmax())] *= 1.03
    for wrong in (
        features[..., 1:].sum(-1),
        right["k"][:, [1, 0, 2]],
        np.roll(right["k"], 1, axis=-1),
        -right["k"],
        np.zeros_like(right["k"]),
        one_off,
    ):
        with pytest.raises(AssertionError, match="times the rounding of terms"):
            assert_same_scores({"k": wrong}, right, terms)


def test_scores_that_cannot_be_told_from_zero_are_refused() -> None:
    scores = {"k": np.full((2, 1, 3), 1e-4)}
    with pytest.raises(AssertionError, match=r"k: scores of 0\.0001 say nothing beside a rounding of"):
        assert_same_scores(scores, scores, 65.0)
    assert_same_scores(scores, scores, 65.0, dtype="float64")


def test_numbers_that_are_not_finite_or_of_another_shape_are_refused() -> None:
    numbers = np.ones(3)
    for other, message in ((numbers * np.nan, "not finite"), (np.ones((1, 3)), "the shapes are")):
        for pair in ((numbers, other), (other, numbers)):
            with pytest.raises(AssertionError, match=message):
                assert_near(*pair, 1.0)
    with pytest.raises(AssertionError):
        assert_same_scores({"z": numbers, "q": numbers}, {"z": numbers}, 1.0)


def test_a_tolerance_follows_from_terms_precision_and_what_is_left_out() -> None:
    assert tolerance(2.0) == pytest.approx(64 * np.finfo("float32").eps)
    assert tolerance(1.0, dtype="float64", float32_steps=0) == pytest.approx(32 * np.finfo("float64").eps)
    assert tolerance(1.0, dtype="float64") == pytest.approx(np.finfo("float32").eps, rel=1e-6)
    assert tolerance(0.0, largest=3.0) == pytest.approx(24 * np.finfo("float32").eps)
    assert tolerance(0.0, truncation=0.5) == 0.5
    assert estimated_terms(np.array([-3.0, 1.0]), 2.0, width=25) == 30.0
    assert_near(0.0, 0.0, 0.0)
    with pytest.raises(AssertionError):
        assert_near(1e-30, 0.0, 0.0)


# The terms of a model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_terms_are_larger_than_what_they_add_up_to(name: str) -> None:
    model = ARCHITECTURES[name]()
    found = score(tiny_model(name), encoded([PAIR]), method(components=list(tiny_model(name).architecture.sites)))[0]
    terms = terms_of(model, PAIR, direction="denoise")
    hooked = [values for component, values in found.items() if component not in {"q", "k", "v"}]
    assert terms > max(np.abs(values).max() for values in hooked)
    assert terms == pytest.approx(found.terms, rel=0.9), "of the size that is estimated from the scores"


def test_terms_by_hand() -> None:
    """Neither layer has attention or an MLP, so the logits are the last embedding times a matrix."""
    model = ARCHITECTURES["gpt2"]()
    with torch.no_grad():
        for layer in model.transformer.h:
            for part in (layer.attn.c_proj, layer.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
    model.transformer.ln_f = torch.nn.Identity()
    inputs = model.transformer.wte.weight[[PAIR.clean[-1], PAIR.corrupted[-1]]] + model.transformer.wpe.weight[8]
    slope = model.lm_head.weight[PAIR.answers].mean(0) - model.lm_head.weight[PAIR.wrong_answers].mean(0)
    assert_near(terms_of(model, PAIR), (slope.abs() * inputs.abs().sum(0)).sum(), 100.0)


def test_errors_of_the_logits_count_where_the_gradient_depends_on_them() -> None:
    model = ARCHITECTURES["llama"]()
    plain, doubled = (
        largest_terms(model, PAIR.clean, PAIR.corrupted, metric) for metric in (METRIC, lambda at: 2 * METRIC(at))
    )
    assert_near(doubled, 2 * plain, plain)
    bent = largest_terms(model, PAIR.clean, PAIR.corrupted, lambda at: METRIC(at) + 1e-6 * at[0] ** 2)
    assert bent > 2 * plain


# Tables


def tables(scores: dict[int, list[float]], metrics: dict[int, float]) -> Tables:
    cell = {"model": "m", "dataset": "d", "method": "atp"}
    rows = [
        {**cell, "pair_id": pair, "component": "z", "layer": 0, "head": 0, "position": position, "score": value}
        for pair, values in scores.items()
        for position, value in enumerate(values)
    ]
    baselines = [
        {**cell, "pair_id": pair, "n_tokens": 9, "clean_metric": value, "corrupted_metric": -value}
        for pair, value in metrics.items()
    ]
    return Tables(pl.DataFrame(rows).sort(SCORE_KEYS), pl.DataFrame(baselines).sort("pair_id"))


SCORES, BASELINES = {1: [0.01, 0.02], 2: [0.5, 50.0]}, {1: 1.0, 2: 2.0}


def test_tables_that_differ_by_rounding_are_the_same() -> None:
    ours = tables({1: [0.01 + 1e-6, 0.02], 2: [0.5, 50.0 + 1e-4]}, {1: 1.0 + 1e-6, 2: 2.0})
    assert_same_numbers(ours, tables(SCORES, BASELINES))


@pytest.mark.parametrize(
    ("scores", "metrics"),
    [
        ({**SCORES, 1: [0.011, 0.02]}, BASELINES),  # no rounding beside this pair's numbers, if beside the other's
        ({**SCORES, 2: [0.5, 50.01]}, BASELINES),
        ({**SCORES, 1: [0.02, 0.01]}, BASELINES),
        ({**SCORES, 1: [0.01]}, BASELINES),
        (SCORES, {**BASELINES, 1: 1.001}),
        ({2: SCORES[2]}, BASELINES),
        (SCORES, {2: BASELINES[2]}),
    ],
)
def test_tables_that_differ_by_more_are_not(scores: dict[int, list[float]], metrics: dict[int, float]) -> None:
    with pytest.raises(AssertionError):
        assert_same_numbers(tables(scores, metrics), tables(SCORES, BASELINES))


# One place for tolerances

OF_OTHER_NUMBERS = (
    "analysis/",
    "attribution/test_memory.py",
    "report/",
    "api/test_run.py",
    "execution/test_accounting.py",
    "execution/test_strata.py",
    "observe/",
    "test_benchmarks.py",
    "test_gpu_benchmark.py",
    "test_near.py",
)
"""Tests that compare statistics, drawings, bytes, speeds and times, and no scores."""


def test_no_comparison_of_scores_has_a_tolerance_of_its_own() -> None:
    own = re.compile(r"allclose|isclose|assert_close|approx\(|\b(a|r|abs_|rel_)tol\b|almost_equal")
    found = [
        f"{path.relative_to(TESTS)}:{number}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if not str(path.relative_to(TESTS)).startswith(OF_OTHER_NUMBERS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if own.search(line)
    ]
    assert not found, "compare with tests.support.near:\n" + "\n".join(found)
