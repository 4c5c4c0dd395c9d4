"""Scores of the families that other tests do not run on, against plain torch hooks: every component, every method."""

from __future__ import annotations

from functools import cache

import pytest

from attrib_batch.errors import ModelError
from attrib_batch.models.checks.capabilities import check_methods, check_verification
from attrib_batch.models.load import LoadedModel
from attrib_batch.models.rotary import keeps_a_state
from attrib_batch.spec import Component, ModelSpec
from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_same_scores
from tests.support.scored import encoded, in_type, method, score, score_together, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import EVERY_ARCHITECTURE, MORE_ARCHITECTURES, SHORT_WINDOW

PREFIX = SHORT_WINDOW + 1
EXPERTS = [
    name for name in MORE_ARCHITECTURES if "moe" in name or name in {"mixtral", "gpt_oss", "llama4", "qwen3_next"}
]
ATTENTION_IN_FLOAT32 = {"bloom", "bloom_normed_stream", "gpt_neo", "gptj", "qwen3_5", "qwen3_next"}
"""Whatever the model is in."""
JOB = ModelSpec(id="m", prepend_bos=False)


@cache
def model_of(name: str, dtype: str = "float32") -> LoadedModel:
    return tiny_model(name, dtype=dtype)


@pytest.mark.parametrize("name", MORE_ARCHITECTURES)
def test_every_component_of_every_further_architecture(name: str) -> None:
    """One prefix is longer than a window or chunk, and one pair has none."""
    model, plain = model_of(name), EVERY_ARCHITECTURE[name]()
    components = list(model.architecture.sites)
    assert set(components) == set(oracle.component_names(plain))
    pairs = random_pairs(1, PREFIX + 4, PREFIX) + random_pairs(1, PREFIX + 2, 0, seed=1)
    ours = score(model, encoded(pairs), method(components=components))
    for index, pair in enumerate(pairs):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp(plain, pair.clean, pair.corrupted, metric, components, direction="denoise")
        assert_same_scores(ours[index], theirs, terms_of(plain, pair))


def components_for(model: LoadedModel, kind: str) -> list[Component]:
    """What a method can be asked for; none where it is refused altogether."""
    found = list(model.architecture.sites)
    if kind == "atp_star":
        hidden = set() if model.architecture.attention_interface else {Component.Q, Component.K}
        return [c for c in found if c not in hidden] if model.architecture.plain_skip else []
    return [] if kind == "exact" and keeps_a_state(model.module.config) else found


@pytest.mark.parametrize("name", [name for name in MORE_ARCHITECTURES if name != "gpt2_upcast"])
def test_other_methods(name: str) -> None:
    """In float64, as activation patching needs (upcasting GPT-2 has no such thing: its attention is float32)."""
    model, plain = model_of(name, "float64"), in_type(EVERY_ARCHITECTURE[name](), "float64")
    [pair] = random_pairs(1, PREFIX + 2, PREFIX)
    metric, terms = oracle.logit_diff(pair.answers, pair.wrong_answers), terms_of(plain, pair)
    dtype = "float32" if name in ATTENTION_IN_FLOAT32 else "float64"
    for kind, options in (("atp_ig", {"ig_steps": 2}), ("atp_star", {}), ("exact", {})):
        components = components_for(model, kind)
        if not components:
            continue
        ours = score(model, encoded([pair]), method(id=kind, components=components, direction="noise", **options))[0]
        asked = (plain, pair.clean, pair.corrupted, metric)
        theirs = (
            {name: oracle.exact(*asked, name, direction="noise") for name in components}
            if kind == "exact"
            else getattr(oracle, kind)(*asked, components, direction="noise", **options)
        )
        assert_same_scores(ours, theirs, terms, dtype=dtype)


@pytest.mark.parametrize("name", [*EXPERTS, "bloom", "falcon_alibi", "gpt_neo", "opt"])
def test_a_pair_alone_scores_as_among_others(name: str) -> None:
    """Every token goes to its experts, however many others do: none is dropped, and no sum depends on the others.

    And positions that are counted from a mask or from cached keys are a prompt's own, whatever shape the others have.
    """
    model = model_of(name)
    components = [c for c in (Component.Z, Component.MLP_OUT, Component.RESID_MID) if c in model.architecture.sites]
    pairs = encoded(random_pairs(5, PREFIX + 3, PREFIX) + random_pairs(2, PREFIX + 1, 3, seed=4))
    jobs = [method(components=components), method(id="noise", kind="atp", components=components, direction="noise")]
    together = score_together(model, pairs, jobs)
    for pair in pairs[::3]:
        for job_id, alone in score_together(model, [pair], jobs).items():
            terms = terms_of(model.module, pair)
            assert_same_scores(together[job_id][pair.pair_id], alone[pair.pair_id], terms)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_ways_to_compute_experts_agree(implementation: str) -> None:
    pairs = encoded(random_pairs(2, PREFIX + 3, PREFIX))
    job = method(components=["mlp_out", "z"])
    expected = score(model_of("mixtral"), pairs, job)
    model = tiny_model("mixtral")
    model.module.set_experts_implementation(implementation)
    for pair_id, scores in score(model, pairs, job).items():
        assert_same_scores(scores, expected[pair_id], terms_of(model.module, pairs[pair_id]))


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("gptj", {"components": ["resid_mid"]}, "gptj has no resid_mid: its attention and MLP read the same"),
        ("cohere", {"components": ["resid_mid"]}, "cohere has no resid_mid: its attention and MLP read the same"),
        ("opt", {"components": ["resid_mid"]}, "opt has no resid_mid: its layers hold .* on one axis"),
        ("llama4", {"components": ["q"]}, "llama4_text has no q: one module normalises queries and keys"),
        ("qwen3_next", {"components": ["z"]}, "qwen3_next has no z: most of its layers have linear attention"),
        ("bloom", {"id": "atp_star", "components": ["q"]}, r"atp_star cannot read the attention .* for q.*own \(bloom"),
        (
            "falcon",
            {"id": "atp_star", "components": ["z", "k"]},
            r"atp_star cannot read the attention .* for k.*Use atp",
        ),
        ("gpt2_upcast", {"id": "atp_star", "components": ["q"]}, r"for q, .*reorder_and_upcast_attn.*attention: sdpa"),
        ("opt_normed_after", {"id": "atp_star"}, r"method 'atp_star': .* normalise the residual stream itself"),
        ("mixtral", {"id": "relp"}, r"method 'relp': relp has no rules for mixtral: its MLPs are mixtures of experts"),
        ("qwen3_next", {"id": "relp", "components": ["mlp_out"]}, "no rules for qwen3_next: most .* linear attention"),
        ("qwen3_5", {"id": "exact", "components": ["mlp_out"]}, "linear attention keep a state instead. Use atp or"),
        ("qwen3_5", {"id": "refined", "components": ["mlp_out"]}, "linear attention keep a state instead. Use atp or"),
    ],
)
def test_what_a_family_cannot_give_is_refused_by_name(name: str, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_methods(JOB, MORE_ARCHITECTURES[name]().config, [method(**asked)])


def test_a_verification_of_linear_attention_is_refused() -> None:
    check_verification(JOB, MORE_ARCHITECTURES["mixtral"]().config)
    with pytest.raises(
        ModelError, match=r"'m', verify: .* layers of qwen3_next with linear attention .* Leave out ver"
    ):
        check_verification(JOB, MORE_ARCHITECTURES["qwen3_next"]().config)
