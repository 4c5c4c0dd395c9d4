"""Zero and mean ablation against plain hooks that replace activations in full forward passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.passes import passes_for
from attrib_batch.attribution.passes.padded import PaddedPasses
from attrib_batch.attribution.references import Means
from attrib_batch.errors import JobError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.reading.reader import Pair
from attrib_batch.spec import Component, parse_spec
from attrib_batch.spec.registries import methods as registry
from attrib_batch.spec.registries.methods import MethodEntry
from tests.attribution.methods.test_atp_hvp import TRUNCATION, signs_of
from tests.support import oracle, teacher_forced
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, in_type, method, score, tiny_model
from tests.support.teacher_forced import COMPONENTS, WholePair, random_pairs_with_answers, whole
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES, EVERY_ARCHITECTURE, tiny_tokenizer
from tests.support.truly_double import compute_in_double

if TYPE_CHECKING:
    from collections.abc import Sequence

PAIRS = [
    WholePair(
        pair.clean, pair.corrupted, [[token] for token in pair.answers], [[token] for token in pair.wrong_answers]
    )
    for pair in [*random_pairs(3, 7, 3), *random_pairs(1, 9, 4, seed=2)]
]
"""Of one token each answer: the mean log-probability of the right ones minus the wrong ones' is their logit_diff."""


def clean_alone(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """Pairs as the engine takes them where no corrupted prompt is looked at."""
    return [replace(pair, corrupted=pair.clean, first_difference=0) for pair in pairs]


def one_token(pairs: Sequence[WholePair]) -> list[EncodedPair]:
    return clean_alone(encoded(random_like(pairs)))


def random_like(pairs: Sequence[WholePair]) -> Any:
    return [
        replace(
            random_pairs(1, 7, 3)[0],
            clean=p.clean,
            corrupted=p.corrupted,
            answers=[t for [t] in p.right],
            wrong_answers=[t for [t] in p.wrong],
        )
        for p in pairs
    ]


def zeros(model: Any, pair: WholePair) -> dict[tuple[str, int], torch.Tensor]:
    return {key: torch.zeros_like(value) for key, value in teacher_forced.activations(model, pair.clean).items()}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "phi"])
@pytest.mark.parametrize(("kind", "steps"), [("atp", None), ("atp_ig", 3)])
def test_zero_ablation_to_first_order(name: str, kind: str, steps: int | None) -> None:
    plain = ARCHITECTURES[name]()
    options = {"ig_steps": steps} if steps else {}
    job = method(id=kind, reference="zero", components=list(COMPONENTS), **options)
    assert job.direction == "noise"
    ours = score(tiny_model(name), one_token(PAIRS), job)
    for index, pair in enumerate(PAIRS):
        other, terms = zeros(plain, pair), teacher_forced.terms(plain, pair)
        theirs = teacher_forced.atp(plain, pair, direction="noise", steps=steps, other=other)
        assert_same_scores(ours[index], theirs, terms)
        assert_near(ours[index].clean_metric, teacher_forced.metric(plain, pair.clean, pair), terms)
        ablated = teacher_forced.ablated(plain, pair, other, COMPONENTS)
        assert_near(ours[index].corrupted_metric, ablated, max(terms, float(ablated.abs())))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_zero_ablation_measured(name: str) -> None:
    plain, pairs = ARCHITECTURES[name]().double(), PAIRS[2:]
    job = method(id="exact", reference="zero", components=list(COMPONENTS))
    ours = score(tiny_model(name, dtype="float64"), one_token(pairs), job)
    for index, pair in enumerate(pairs):
        other, terms = zeros(plain, pair), teacher_forced.terms(plain, pair)
        theirs = {c: teacher_forced.exact(plain, pair, c, direction="noise", other=other) for c in COMPONENTS}
        assert_same_scores(ours[index], theirs, terms, dtype="float64")
        ablated = teacher_forced.ablated(plain, pair, other, COMPONENTS)
        assert_near(ours[index].corrupted_metric, ablated, terms, dtype="float64")


ALL = ["z", "q", "k", "mlp_out", "resid_post"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "phi"])
def test_zero_ablation_by_the_repairs_of_atp_star(name: str) -> None:
    plain, tokens = ARCHITECTURES[name](), random_like(PAIRS)
    ours = score(tiny_model(name), one_token(PAIRS), method(id="atp_star", reference="zero", components=ALL))
    for index, pair in enumerate(tokens):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        none = oracle.zeros(plain, pair.clean)
        theirs = oracle.atp_star(plain, pair.clean, pair.clean, metric, ALL, direction="noise", other=none)
        assert_same_scores(ours[index], theirs, terms_of(plain, encoded([pair])[0]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon"])
def test_zero_ablation_estimated_and_measured_by_refined(name: str) -> None:
    plain, tokens = in_type(EVERY_ARCHITECTURE[name](), "float64"), random_like(PAIRS[2:])
    model = tiny_model(name, dtype="float64")
    job = method(id="refined", reference="zero", components=ALL, budget=3.0)
    for _, outcome in score_pairs(model, one_token(PAIRS[2:]), [job], TokenBudget(4096)):
        assert isinstance(outcome, ScoredBatch), outcome
        for at, given in enumerate(outcome.pairs):
            pair = tokens[given.pair_id]
            asked = (plain, pair.clean, pair.clean, oracle.logit_diff(pair.answers, pair.wrong_answers))
            none, terms = oracle.zeros(plain, pair.clean), terms_of(plain, encoded([pair])[0])
            estimates = oracle.atp(*asked, ALL, direction="noise", other=none)
            assert outcome.result.estimates is not None
            for component in job.components:
                measured = ~np.isnan(outcome.result.estimates[component][at])
                assert 0 < measured.sum() < measured.size
                effect = oracle.exact(*asked, component, direction="noise", other=none)
                theirs = np.where(measured, effect, estimates[component])
                assert_near(outcome.result.scores[component][at], theirs, terms, dtype="float64")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_zero_ablation_to_second_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_model(name, dtype="float64"), ARCHITECTURES[name]().double()
    compute_in_double(plain, monkeypatch)
    [tokens], [pair] = random_like(PAIRS[:1]), one_token(PAIRS[:1])
    ours = score(model, [pair], method(id="atp_hvp", probes=1, reference="zero", components=ALL))[0]
    metric, none = oracle.logit_diff(tokens.answers, tokens.wrong_answers), oracle.zeros(plain, tokens.clean)
    theirs = {
        name: oracle.atp_hvp(
            plain,
            tokens.clean,
            tokens.clean,
            metric,
            name,
            signs=signs_of(model, pair, Component(name)),
            direction="noise",
            other=none,
        )
        for name in ALL
    }
    assert_same_scores(ours, theirs, terms_of(plain, encoded([tokens])[0]), dtype="float64", truncation=TRUNCATION)


@pytest.mark.parametrize("kind", ["atp_star", "exact"])
def test_means_of_queries_and_keys_are_turned_by_position_as_they_are(kind: str) -> None:
    """Every position has a role of its own: then the means after position embedding are those before it, turned."""
    plain, tokens = ARCHITECTURES["llama"]().double(), random_like(PAIRS[:2])
    roles = tuple(f"at {position}" for position in range(len(tokens[0].clean)))
    pairs = [replace(pair, roles=roles) for pair in one_token(PAIRS[:2])]
    prompts = [pair.clean for pair in tokens]
    means = Means(
        roles,
        {Component(name): _projected(plain, f"{name}_proj", prompts) for name in ("q", "k")},
        np.zeros((len(roles), plain.config.hidden_size)),
    )
    job = method(id=kind, reference="mean", components=["q", "k"])
    ours = score(tiny_model("llama", dtype="float64"), pairs, job, means=means)
    other = oracle.mean(plain, prompts)
    for index, pair in enumerate(tokens):
        asked = (plain, pair.clean, pair.clean, oracle.logit_diff(pair.answers, pair.wrong_answers))
        theirs = (
            oracle.atp_star(*asked, ["q", "k"], direction="noise", other=other)
            if kind == "atp_star"
            else {name: oracle.exact(*asked, name, direction="noise", other=other) for name in ("q", "k")}
        )
        assert_same_scores(ours[index], theirs, terms_of(plain, encoded([pair])[0]), dtype="float64")


def _projected(plain: Any, name: str, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """What projections give, [layer, position, head, feature], averaged over prompts."""
    found: list[torch.Tensor] = []
    modules = [layer.self_attn.get_submodule(name) for layer in plain.model.layers]
    handles = [module.register_forward_hook(lambda _m, _a, output: found.append(output)) for module in modules]
    with torch.no_grad():
        plain(torch.tensor([list(prompt) for prompt in prompts]))
    for handle in handles:
        handle.remove()
    values = torch.stack(found).mean(1)
    return values.unflatten(-1, (-1, plain.config.head_dim)).numpy()


def test_only_the_methods_own_components_are_ablated_together() -> None:
    plain, [pair] = ARCHITECTURES["llama"](), PAIRS[:1]
    jobs = [method(id=name, kind="atp", reference="zero", components=[name]) for name in COMPONENTS]
    found = {job.id: score(tiny_model("llama"), one_token([pair]), job)[0].corrupted_metric for job in jobs}
    terms = teacher_forced.terms(plain, pair)
    for name, ours in found.items():
        assert_near(ours, teacher_forced.ablated(plain, pair, zeros(plain, pair), [name]), terms)
    assert len({round(value, 4) for value in found.values()}) == len(COMPONENTS)


@pytest.mark.parametrize("kind", ["atp", "exact"])
def test_whole_answers_of_an_ablated_prompt(kind: str) -> None:
    """What stands behind the prompt is not ablated, and sees what is."""
    plain, pairs = ARCHITECTURES["llama"]().double(), random_pairs_with_answers()[1:3]
    job = method(id=kind, reference="zero", components=list(COMPONENTS), metric="sequence_logprob_diff")
    ours = score(tiny_model("llama", dtype="float64"), clean_alone(whole(pairs)), job)
    for index, pair in enumerate(pairs):
        other, terms = zeros(plain, pair), teacher_forced.terms(plain, pair)
        theirs = (
            teacher_forced.atp(plain, pair, direction="noise", other=other)
            if kind == "atp"
            else {c: teacher_forced.exact(plain, pair, c, direction="noise", other=other) for c in COMPONENTS}
        )
        assert_same_scores(ours[index], theirs, terms, dtype="float64")
        ablated = teacher_forced.ablated(plain, pair, other, COMPONENTS)
        assert_near(ours[index].corrupted_metric, ablated, terms, dtype="float64")


def test_scores_do_not_depend_on_batching_or_on_how_suffixes_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny_model("llama", dtype="float64"), one_token(PAIRS)
    jobs = [method(id=kind, reference="zero", components=list(COMPONENTS)) for kind in ("atp", "atp_ig", "exact")]
    assert not passes_for(model).padded
    first = {job.id: score(model, pairs, job) for job in jobs}
    others = [{job.id: score(model, pairs, job, batch_tokens=20) for job in jobs}]
    monkeypatch.setattr("attrib_batch.attribution.engine.passes_for", PaddedPasses)
    others.append({job.id: score(model, pairs, job) for job in jobs})
    for other in others:
        for job in jobs:
            for pair_id, scores in first[job.id].items():
                assert_same_scores(other[job.id][pair_id], scores, scores.terms, dtype="float64")


def test_a_pair_without_a_corrupted_prompt_is_read_for_an_ablation_alone() -> None:
    given = Pair(7, "w1 w2 w3", None, (" Mary",), (" John",))
    tokenizer = tiny_tokenizer()
    (found,) = encode_pairs([given], tokenizer, prepend_bos=True, against_corrupted=False)
    assert isinstance(found, EncodedPair), found
    assert found.clean == found.corrupted
    assert (found.n_tokens, found.first_difference) == (4, 0)
    (problem,) = encode_pairs([given], tokenizer, prepend_bos=True)
    assert "corrupted is null" in problem.message  # type: ignore[union-attr]


def _job(**options: Any) -> None:
    parse_spec(
        {
            "name": "job",
            "models": [{"id": "m", "prepend_bos": False, **options.pop("model", {})}],
            "datasets": [{"id": "d", "path": "d.parquet"}],
            "methods": [{"id": "atp", **options}],
        },
        source="job",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reference": "zero", "direction": "denoise"},
            "reference zero patches the clean prompt, .* leave direction out",
        ),
        ({"reference": "none"}, r"reference: Input should be 'corrupted', 'zero' or 'mean', not 'none'"),
        ({"reference": "zero", "metric": "kl"}, "metric kl is at its minimum .* use kind atp_ig or exact"),
    ],
)
def test_what_a_reference_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        _job(**options)


def test_a_method_of_ones_own_that_takes_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = MethodEntry("own", function="own:score", title="Own", explanation="own.", cost="1", paper="none")
    monkeypatch.setitem(registry._loaded, "own", own)
    with pytest.raises(JobError, match="kind own knows no reference but corrupted; for zero use kind atp or atp_ig"):
        _job(kind="own", reference="zero")


def test_a_method_of_an_earlier_job_is_the_same() -> None:
    assert "reference" not in method().identity()
    assert method(reference="zero").identity()["reference"] == "zero"
