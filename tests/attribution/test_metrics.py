"""The metrics against torch written out, and metrics of one's own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from attrib_batch.attribution import metrics
from attrib_batch.attribution.engine import FailedPair, TokenBudget, score_pairs
from attrib_batch.attribution.metrics import (
    AnswerSets,
    logit_diff,
    metric_named,
    register_metric,
    try_metric,
    try_metrics,
)
from attrib_batch.errors import JobError, ModelError
from attrib_batch.models.load import wrap_model
from attrib_batch.spec import SweepSpec, parse_spec
from attrib_batch.spec.registries.metrics import METRICS
from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.metrics import metric_of
from tests.support.near import assert_near, assert_same_scores
from tests.support.own_package import install_package
from tests.support.scored import encoded, method, score, score_alike, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


PAIRS = random_pairs(4, 9, 4)
LAST_TOKEN = [name for name, entry in METRICS.items() if not entry.whole_answers]
"""Those of answers of one token; the others are tested with what passes whole answers through a model."""


@pytest.fixture
def only_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers or loads is forgotten after it."""
    monkeypatch.setattr(metrics, "_loaded", dict(metrics._loaded))
    monkeypatch.setattr(metrics, "registered_names", set())
    monkeypatch.setattr("attrib_batch.spec.registries.metrics.registered_names", metrics.registered_names)


def _job(**of_method: object) -> SweepSpec:
    data = {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "d.parquet"}],
        "methods": [{"id": "atp", **of_method}],
    }
    return parse_spec(data, source="job")


@pytest.mark.parametrize("name", LAST_TOKEN)
def test_values_and_answer_sets_are_those_written_out(name: str) -> None:
    torch.manual_seed(0)
    logits, clean = torch.randn(2, len(PAIRS), 126)
    ours = metric_named(name)(logits, clean, AnswerSets.of(encoded(PAIRS), logits.device))
    assert {len(pair.answers) for pair in PAIRS} > {1}
    assert {len(pair.wrong_answers) for pair in PAIRS} > {1}
    for index, pair in enumerate(PAIRS):
        theirs = metric_of(name, pair.answers, pair.wrong_answers, clean[index])
        assert_near(ours[index], theirs(logits[index]), logits[index].abs().max().item())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", LAST_TOKEN)
def test_scores_and_baselines_of_every_metric(name: str, architecture: str) -> None:
    from attrib_batch.attribution.methods.atp import attribution_patching

    model, plain = tiny_model(architecture), ARCHITECTURES[architecture]()
    ours = score_alike(attribution_patching, model, encoded(PAIRS), method(metric=name))
    for index, pair in enumerate(PAIRS):
        clean, corrupted = (plain(torch.tensor([ids])).logits[0, -1].detach() for ids in (pair.clean, pair.corrupted))
        metric = metric_of(name, pair.answers, pair.wrong_answers, clean)
        theirs = oracle.atp(plain, pair.clean, pair.corrupted, metric, ["z"], direction="denoise")["z"]
        terms = terms_of(plain, pair, name)
        assert_same_scores({"z": ours.scores["z"][index]}, {"z": theirs[..., 4:]}, terms)
        assert_near(ours.clean_metric[index], metric(clean), terms)
        assert_near(ours.corrupted_metric[index], metric(corrupted), terms)


@pytest.mark.parametrize("name", LAST_TOKEN)
def test_half_precision_logits_are_measured_in_single(name: str) -> None:
    torch.manual_seed(0)
    logits, clean = (10 * torch.randn(2, len(PAIRS), 126)).bfloat16()
    answers = AnswerSets.of(encoded(PAIRS), logits.device)
    half = metric_named(name)(logits, clean, answers)
    assert half.dtype == torch.float32
    single = metric_named(name)(logits.float(), clean.float(), answers)
    assert_near(half, single, logits.abs().max().item())


def test_names_a_job_knows_are_those_that_are_defined() -> None:
    assert [metric_named(name).__name__ for name in LAST_TOKEN] == LAST_TOKEN
    assert [entry.name for entry in METRICS.values()] == list(METRICS)
    assert all(entry.unit and entry.explanation for entry in METRICS.values())


@pytest.mark.parametrize("name", LAST_TOKEN)
def test_what_the_registry_says_of_a_metric_is_so(name: str) -> None:
    entry, metric = METRICS[name], metric_named(name)
    pairs = encoded(PAIRS)
    logits, clean = torch.randn(2, len(pairs), 126, generator=torch.Generator().manual_seed(0)).unbind()
    named = sorted({token for pair in pairs for token in (*pair.answers, *pair.wrong_answers)})
    answers, among = AnswerSets.of(pairs, logits.device), AnswerSets.of(pairs, logits.device, named)
    alone = metric(logits[:, named], clean[:, named], among)
    assert torch.equal(alone, metric(logits, clean, answers)) == entry.of_answers_alone
    at_clean = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(metric(at_clean, clean, answers).sum(), at_clean)
    assert (gradient.abs().max().item() < 1e-6) == entry.flat_on_clean


def test_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        JobError,
        match=r"metric: expected .*\(logit_diff, prob_diff, log_prob, kl, sequence_logprob_diff\), not 'logit_dif'",
    ):
        _job(metric="logit_dif")
    with pytest.raises(JobError, match="not known in this process; known: logit_diff, prob_diff"):
        metric_named("logit_dif")


@pytest.mark.parametrize("kind", ["atp", "atp_star"])
def test_kl_where_it_has_no_gradient_is_refused(kind: str) -> None:
    with pytest.raises(
        JobError, match=f"kl is at its minimum on the clean prompt, where {kind} .* use direction denoise"
    ):
        _job(kind=kind, metric="kl", direction="noise")
    _job(kind=kind, metric="kl", direction="denoise")


@pytest.mark.parametrize("kind", ["atp_ig", "exact"])
def test_kl_noise_is_allowed_where_it_says_something(kind: str) -> None:
    scores = score(tiny_model("llama"), encoded(PAIRS), method(id=kind, metric="kl", direction="noise"))
    assert all(of_pair["z"].any() for of_pair in scores.values())


DOUBLED = """
from attrib_batch.attribution.metrics import logit_diff

def doubled(logits, clean_logits, answers):
    return 2 * logit_diff(logits, clean_logits, answers)
"""


@pytest.mark.usefixtures("only_built_in")
def test_metric_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_package(tmp_path, "own_metrics", DOUBLED, "doubled = own_metrics:doubled")
    monkeypatch.syspath_prepend(tmp_path)
    model, pairs = tiny_model("llama"), encoded(PAIRS)
    plain = score(model, pairs, method())
    doubled = score(model, pairs, method(metric=_job(metric="doubled").methods[0].metric))
    for pair in pairs:
        twice = {"z": 2 * plain[pair.pair_id]["z"]}
        assert_same_scores(doubled[pair.pair_id], twice, 2 * terms_of(model.module, pair))


@pytest.mark.slow
def test_checking_a_name_loads_neither_torch_nor_the_metric(tmp_path: Path) -> None:
    install_package(tmp_path, "own_metrics", "raise SystemExit('loaded')", "own = own_metrics:own")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from attrib_batch.spec import MethodSpec\n"
        "MethodSpec.model_validate({'id': 'atp', 'metric': 'own'})\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("only_built_in")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import no_such_module_anywhere",
            "cannot be loaded from own_metrics:own: ModuleNotFoundError: No module named",
        ),
        ("", "cannot be loaded from own_metrics:own: AttributeError: .*has no attribute"),
        ("1 / 0", "cannot be loaded from own_metrics:own: ZeroDivisionError: division by zero"),
        ("def own(:", "cannot be loaded from own_metrics:own: SyntaxError"),
        ("own = 3", "own_metrics:own is not a function"),
    ],
)
def test_package_that_does_not_hold_what_it_offers(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    install_package(tmp_path, "own_metrics", source, "own = own_metrics:own")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobError, match=message):
        metric_named("own")
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)


@pytest.mark.usefixtures("only_built_in")
def test_name_that_two_packages_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        install_package(tmp_path, f"{name}_metrics", DOUBLED, f"own = {name}_metrics:doubled")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobError, match="claimed by one_metrics:doubled, two_metrics:doubled"):
        metric_named("own")


@pytest.mark.usefixtures("only_built_in")
def test_metric_registered_in_this_process() -> None:
    register_metric("negated", lambda *args: -logit_diff(*args))
    assert _job(metric="negated").methods[0].metric == "negated"
    model, pairs = tiny_model("llama"), encoded(PAIRS)
    plain, negated = score(model, pairs, method()), score(model, pairs, method(metric="negated"))
    for pair in pairs:
        assert_same_scores(negated[pair.pair_id], {"z": -plain[pair.pair_id]["z"]}, terms_of(model.module, pair))
    for taken in ("negated", "kl"):
        with pytest.raises(JobError, match="exists already"):
            register_metric(taken, logit_diff)


@pytest.mark.usefixtures("only_built_in")
def test_metric_of_a_wrong_shape_is_named() -> None:
    register_metric("total", lambda *args: logit_diff(*args).sum())
    logits = torch.zeros(len(PAIRS), 126)
    with pytest.raises(JobError, match=r"metric 'total' gave the shape \(\), expected \(4,\)"):
        metric_named("total")(logits, logits, AnswerSets.of(encoded(PAIRS), logits.device))


def _through_numpy(logits: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.from_numpy(logits.detach().numpy()[:, 0])


UNUSABLE: dict[str, tuple[Callable[..., object], str]] = {
    "raises": (lambda *_: {}["missing thing"], "raises KeyError: 'missing thing'. A metric is a function"),
    "shape": (lambda logits, *_: logits.sum(0), r"gave the shape \(50,\), expected \(2,\). A metric is a function"),
    "no tensor": (lambda *_: 1.0, "gave a float. A metric is a function"),
    "no gradient": (_through_numpy, "has no gradient: what it returns does not depend differentiably on logits"),
    "other gradient": (lambda *_: torch.ones(2, requires_grad=True), "has no gradient"),
    "NaN": (lambda logits, *_: logits[:, 0] * torch.nan, r"gives \[nan, nan\]"),
    "infinite": (lambda logits, *_: logits[:, 0] / 0, "gives .*inf"),
    "steep": (lambda logits, *_: (logits[:, 0] * 0).sqrt(), "has a gradient that is not finite"),
}


@pytest.mark.usefixtures("only_built_in")
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_metric_is_tried_on_made_up_logits(case: str) -> None:
    function, message = UNUSABLE[case]
    register_metric("own", function)  # type: ignore[arg-type]  # it is none
    with pytest.raises(JobError, match=f"metric 'own' .*{message}"):
        try_metric("own", 50, needs_gradient=True)


@pytest.mark.usefixtures("only_built_in")
def test_a_metric_needs_a_gradient_only_where_one_is_taken() -> None:
    register_metric("rank", _through_numpy)
    try_metrics([method(id="exact", metric="rank")], 50)
    with pytest.raises(JobError, match="no gradient"):
        try_metrics([method(id="exact", metric="rank"), method(id="atp", metric="rank")], 50)


@pytest.mark.usefixtures("only_built_in")
@pytest.mark.parametrize("name", LAST_TOKEN)
def test_what_is_built_in_would_pass(name: str) -> None:
    register_metric("own", metric_named(name))
    try_metric("own", 4, needs_gradient=True)


@pytest.mark.usefixtures("only_built_in")
def test_a_metric_of_a_wrong_shape_is_charged_to_no_pair() -> None:
    register_metric("total", lambda *args: logit_diff(*args).sum())
    with pytest.raises(JobError, match="metric 'total' gave the shape"):
        score(tiny_model("llama"), encoded(PAIRS), method(metric="total"))


def test_a_component_the_model_lacks_is_charged_to_no_pair() -> None:
    with pytest.raises(ModelError, match="phi has no resid_mid"):
        score(tiny_model("phi"), encoded(PAIRS), method(components=["z", "resid_mid"]))


@pytest.mark.usefixtures("only_built_in")
@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float32, "the metric holed is not finite for this pair, in float32"),
        (torch.bfloat16, "the model may overflow in bfloat16: try dtype float32"),
    ],
)
def test_what_is_not_finite_is_said_truly(dtype: torch.dtype, message: str) -> None:
    """A pair whose first right answer is NaN, in single precision: no overflow."""
    pairs = encoded(PAIRS)
    hole = pairs[2].answers[0]
    register_metric(
        "holed",
        lambda logits, clean, answers: logit_diff(logits, clean, answers).where(answers.right[:, 0] != hole, torch.nan),
    )
    model = wrap_model(ARCHITECTURES["llama"]().to(dtype), tiny_tokenizer())
    failed = [
        outcome
        for _, outcome in score_pairs(model, pairs, [method(metric="holed")], TokenBudget(4096))
        if isinstance(outcome, FailedPair)
    ]
    assert [outcome.pair for outcome in failed] == [pair for pair in pairs if pair.answers[0] == hole]
    assert all(message in outcome.message for outcome in failed)
