"""Zero and mean ablation against plain hooks that replace activations in full forward passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from attrib_batch.attribution.passes import passes_for
from attrib_batch.attribution.passes.padded import PaddedPasses
from attrib_batch.errors import JobError
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.pairs.reading.reader import Pair
from attrib_batch.spec import parse_spec
from tests.support import teacher_forced
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.teacher_forced import COMPONENTS, WholePair, random_pairs_with_answers, whole
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

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
            {"kind": "atp_star", "reference": "zero"},
            "kind atp_star knows no reference but corrupted; for zero use kind",
        ),
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


def test_a_method_of_an_earlier_job_is_the_same() -> None:
    assert "reference" not in method().identity()
    assert method(reference="zero").identity()["reference"] == "zero"
