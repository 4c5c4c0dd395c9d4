"""Requests to an NDIF server without the server: serialised, rebuilt where this package is hidden, and run."""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.schema.request import RequestModel

from attrib_batch.attribution.engine import FailedPair, Outcome, ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.references import Means
from attrib_batch.attribution.scores import ActivationSums, BatchScores
from attrib_batch.models.load import LoadedModel, load_model
from attrib_batch.ndif import request as remote
from attrib_batch.ndif.model import RemoteModel, open_remote_model
from attrib_batch.ndif.server import PACKAGES_THERE
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.spec import Component, MethodSpec, ModelSpec
from attrib_batch.tables import FailureReason
from tests.support import teacher_forced
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import in_words
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, score, tiny_model
from tests.support.teacher_forced import random_pairs_with_answers, whole
from tests.support.terms import terms_of
from tests.support.tiny_models import save_tiny

BATCH_TOKENS = 64
METHODS = {
    "two of atp": [
        {"id": "atp", "components": ["z", "q", "k", "v", "mlp_out", "resid_mid"]},
        {"id": "noise", "kind": "atp", "direction": "noise", "metric": "log_prob"},
    ],
    "kl": [{"id": "kl", "kind": "atp", "metric": "kl"}],
    "atp_ig": [{"id": "atp_ig", "components": ["z", "resid_pre"]}],
    "atp_star": [{"id": "atp_star", "components": ["z", "q", "k"]}],
    "relp": [{"id": "relp", "components": ["z", "q", "mlp_out", "resid_mid"]}],
    "exact": [{"id": "exact", "components": ["z", "k"]}],
    "zeros": [{"id": "zeros", "kind": "atp", "reference": "zero", "components": ["z", "q", "mlp_out"]}],
    "zeros of atp_star": [{"id": "zeros", "kind": "atp_star", "reference": "zero", "components": ["z", "q", "k"]}],
    "exact at the end": [{"id": "exact", "at": "last"}],
    "refined": [{"id": "refined", "components": ["z", "k"]}],
    "atp_hvp": [{"id": "atp_hvp", "components": ["z", "mlp_out"]}],
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_tiny(request.param, tmp_path_factory.mktemp("model"))
    return load_model(ModelSpec(id=str(folder), prepend_bos=False))


def pairs_for(model: LoadedModel) -> list[EncodedPair]:
    rows = in_words(random_pairs(6, 9, 4) + random_pairs(3, 11, 5, seed=1))
    return [pair for pair in encode_pairs(rows, model.tokenizer, prepend_bos=False) if isinstance(pair, EncodedPair)]


def simulated(
    model: LoadedModel, pairs: list[EncodedPair], methods: list[MethodSpec], means: Means | None = None
) -> remote.Answer:
    there = RemoteModel(model.traced, "", model.tokenizer, model.architecture, model.dimensions)
    backend = LocalSimulationBackend(model.traced)
    answer = remote.ask(there, pairs, methods, batch_tokens=BATCH_TOKENS, backend=backend, means=means)
    assert answer is not None
    return answer


@pytest.mark.parametrize("case", METHODS)
def test_a_request_scores_what_the_engine_scores(model: LoadedModel, case: str) -> None:
    pairs, methods = pairs_for(model), [MethodSpec.model_validate(method) for method in METHODS[case]]
    answer = simulated(model, pairs, methods)
    assert answer["dtype"] == "float32"
    here = by_method(score_pairs(model, pairs, methods, TokenBudget(BATCH_TOKENS)))
    there = by_method(remote.outcomes(answer, pairs, methods))
    assert {key: set(of) for key, of in there.items()} == {key: set(of) for key, of in here.items()}
    for method in methods:
        for pair in pairs:
            (mine, at), (theirs, where) = there[method.id][pair.pair_id], here[method.id][pair.pair_id]
            terms = terms_of(model.module, pair, method.metric)
            for metric in ("clean_metric", "corrupted_metric"):
                assert_near(getattr(mine, metric)[at], getattr(theirs, metric)[where], terms)
            if mine.positions is not None:
                np.testing.assert_equal(theirs.positions[where], mine.positions[at])
            if mine.estimates is not None:
                for component, estimates in mine.estimates.items():
                    measured = np.isnan(theirs.estimates[component][where])
                    np.testing.assert_equal(np.isnan(estimates[at]), measured)
            scores, others = (
                {component: values[index] for component, values in batch.scores.items()}
                for batch, index in ((mine, at), (theirs, where))
            )
            assert_same_scores(scores, others, terms)


def by_method(outcomes: Iterable[tuple[MethodSpec, Outcome]]) -> dict[str, dict[int, tuple[BatchScores, int]]]:
    """The result that holds each pair, and where in it: a server puts pairs together in its own way."""
    found: dict[str, dict[int, tuple[BatchScores, int]]] = {}
    for method, outcome in outcomes:
        assert isinstance(outcome, ScoredBatch), outcome
        of_method = found.setdefault(method.id, {})
        of_method |= {pair.pair_id: (outcome.result, index) for index, pair in enumerate(outcome.pairs)}
    return found


def test_a_family_with_views_that_copy_and_outputs_that_change_travels() -> None:
    model, pairs = tiny_model("falcon"), encoded(random_pairs(2, 9, 4))
    job = MethodSpec.model_validate({"id": "exact", "components": ["q", "mlp_out"]})
    [(_, outcome)] = remote.outcomes(simulated(model, pairs, [job]), pairs, [job])
    assert isinstance(outcome, ScoredBatch), outcome
    here = score(model, pairs, job)
    for index, pair in enumerate(outcome.pairs):
        there = {of: values[index] for of, values in outcome.result.scores.items()}
        mine = {of: values[..., pair.first_difference :] for of, values in here[pair.pair_id].items()}
        assert_same_scores(there, mine, terms_of(model.module, pair))


def test_whole_answers_travel(model: LoadedModel) -> None:
    pairs = whole(random_pairs_with_answers())
    jobs = [
        MethodSpec.model_validate({"id": kind, "kind": kind, "metric": "sequence_logprob_diff"})
        for kind in ("atp", "atp_ig", "exact")
    ]
    for job in jobs:
        here = score(model, pairs, job)
        there = by_method(remote.outcomes(simulated(model, pairs, [job]), pairs, [job]))[job.id]
        for pair, given in zip(pairs, random_pairs_with_answers(), strict=True):
            result, index = there[pair.pair_id]
            scores = {component: values[index] for component, values in result.scores.items()}
            mine = {of: values[..., pair.first_difference :] for of, values in here[pair.pair_id].items()}
            assert_same_scores(scores, mine, teacher_forced.terms(model.module, given))


def test_means_come_back_as_sums_and_travel_with_what_is_scored_by_them(model: LoadedModel) -> None:
    pairs = [
        replace(pair, corrupted=pair.clean, first_difference=0, roles=("first", *[None] * (pair.n_tokens - 1)))
        for pair in pairs_for(model)
    ]
    components = (Component.Z, Component.K)
    stage = [
        MethodSpec.model_construct(
            id=f"mean-{component}", kind="mean_activations", components=(component,), metric="logit_diff",
            direction="noise", reference="mean",
        )
        for component in components
    ]  # fmt: skip
    here, there = (
        {method.id: joined([o.result.sums for m, o in found if m is method]) for method in stage}
        for found in (
            list(score_pairs(model, pairs, stage, TokenBudget(BATCH_TOKENS))),
            list(remote.outcomes(simulated(model, pairs, stage), pairs, stage)),
        )
    )
    for method in stage:
        (mine, entering), (theirs, entered) = there[method.id], here[method.id]
        assert_near(mine, theirs, np.abs(theirs).max())
        assert_near(entering, entered, np.abs(entered).max())
    roles = (None, "first")
    means = Means(
        roles,
        {m.components[0]: here[m.id][0].astype(np.float32) for m in stage},
        here[stage[0].id][1].astype(np.float32),
    )
    jobs = [MethodSpec.model_validate({"id": "atp_ig", "reference": "mean", "components": ["z", "k"]})]
    local = by_method(score_pairs(model, pairs, jobs, TokenBudget(BATCH_TOKENS), means=means))["atp_ig"]
    sent = by_method(remote.outcomes(simulated(model, pairs, jobs, means), pairs, jobs))["atp_ig"]
    for pair in pairs:
        (mine, at), (theirs, where) = sent[pair.pair_id], local[pair.pair_id]
        terms = terms_of(model.module, pair)
        assert_near(mine.corrupted_metric[at], theirs.corrupted_metric[where], terms)
        for component in components:
            assert_near(mine.scores[component][at], theirs.scores[component][where], terms)


def joined(parts: list[ActivationSums]) -> tuple[np.ndarray, np.ndarray]:
    """Means of parts by role, (layer, role, head, feature), and of what enters the first layer; no role first."""
    roles = (None, "first")
    count = sum(np.array([part.count[part.roles.index(role)] for role in roles]) for part in parts)
    totals = sum(part.totals[:, [part.roles.index(role) for role in roles]] for part in parts)
    entering = sum(part.entering[[part.roles.index(role) for role in roles]] for part in parts)
    return totals / count[None, :, None, None], entering / count[:, None]


@pytest.mark.parametrize("case", METHODS)
def test_a_request_names_only_packages_that_a_server_has(
    model: LoadedModel, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads: list[bytes] = []
    serialize = RequestModel.serialize

    def recorded(*args: object, **options: object) -> bytes:
        payloads.append(serialize(*args, **options))
        return payloads[-1]

    monkeypatch.setattr(RequestModel, "serialize", staticmethod(recorded))
    simulated(model, pairs_for(model), [MethodSpec.model_validate(method) for method in METHODS[case]])
    [payload] = payloads
    third_party = roots_named_in(payload) - set(sys.stdlib_module_names)
    assert third_party <= {"nnsight", "cloudpickle", "numpy", *PACKAGES_THERE}


def roots_named_in(payload: bytes) -> set[str]:
    """The packages that unpickling a payload imports: texts on the stack before a global is taken from it."""
    texts: list[str] = []
    memo: dict[int, str] = {}
    roots = set()
    last = ""
    for operation, argument, _ in pickletools.genops(payload):
        if operation.name in {"SHORT_BINUNICODE", "BINUNICODE"}:
            texts.append(argument)
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if last in {"SHORT_BINUNICODE", "BINUNICODE"} else ""
        elif operation.name in {"BINGET", "LONG_BINGET"}:
            texts.append(memo[argument])
        elif operation.name == "STACK_GLOBAL":
            roots.add(texts[-2].partition(".")[0])
        last = operation.name
    return roots


def test_what_comes_back_is_scores_alone(model: LoadedModel) -> None:
    pairs = pairs_for(model)
    answer = simulated(model, pairs, [MethodSpec(id="atp", components=(Component.Z, Component.RESID_PRE))])
    layers, heads = model.dimensions.n_layers, model.dimensions.n_heads
    expected = sum(layers * (heads + 1) * (pair.n_tokens - pair.first_difference) for pair in pairs)
    assert sum(values.size for batch in answer["scored"] for values in batch["scores"].values()) == expected
    assert {values.dtype for batch in answer["scored"] for values in batch["scores"].values()} == {np.dtype("float32")}


def test_a_pair_that_raises_there_is_named_here(model: LoadedModel) -> None:
    good = pairs_for(model)
    bad = EncodedPair(**{**vars(good[0]), "pair_id": 99, "answers": (10_000,)})
    methods = [MethodSpec(id="atp")]
    found = [outcome for _, outcome in remote.outcomes(simulated(model, [*good, bad], methods), [*good, bad], methods)]
    (failed,) = (outcome for outcome in found if isinstance(outcome, FailedPair))
    assert failed.pair.pair_id == 99
    assert failed.reason is FailureReason.SCORING_ERROR
    assert "IndexError" in failed.message
    assert sum(len(outcome.pairs) for outcome in found if isinstance(outcome, ScoredBatch)) == len(good)


def test_methods_that_are_not_wanted_any_more_are_left_out(model: LoadedModel) -> None:
    pairs = pairs_for(model)
    both = [MethodSpec(id="atp"), MethodSpec(id="noise", kind="atp", direction="noise")]
    answer = simulated(model, pairs, both)
    assert {method.id for method, _ in remote.outcomes(answer, pairs, both[1:])} == {"noise"}


def test_the_client_side_of_a_model_holds_no_weights(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    there = open_remote_model(ModelSpec(id=str(folder), prepend_bos=False))
    assert {parameter.device.type for parameter in there.traced._module.parameters()} == {"meta"}
    assert there.dimensions.n_layers == 3
    assert there.key.endswith(f'"repo_id": "{folder}", "revision": null, "task": "text-generation"}}')
