"""Integrated gradients against plain torch hooks, and completeness."""

from __future__ import annotations

import numpy as np
import pytest

from attrib_batch.attribution.methods.atp_ig import integrated_gradients
from attrib_batch.errors import JobError
from attrib_batch.spec import Component, parse_spec
from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near, assert_same_scores
from tests.support.scored import encoded, method, score, score_alike, tiny_model
from tests.support.terms import terms_of
from tests.support.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_component_of_every_architecture(name: str, direction: str) -> None:
    model, plain = tiny_model(name), ARCHITECTURES[name]()
    components = list(model.architecture.sites)
    pairs = random_pairs(2, 10, 4) + random_pairs(1, 8, 0, seed=1)
    job = method(id="atp_ig", ig_steps=3, components=components, direction=direction)
    ours = score(model, encoded(pairs), job)
    for index, pair in enumerate(pairs):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp_ig(plain, pair.clean, pair.corrupted, metric, components, direction=direction, ig_steps=3)
        assert_same_scores(ours[index], theirs, terms_of(plain, pair))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_scores_of_what_enters_add_up_to_the_metric_difference(name: str) -> None:
    """Completeness: what is missing falls with the square of the steps, and is soon nothing."""
    model, pairs = tiny_model(name), encoded(random_pairs(3, 9, 4))
    missing = []
    for steps in (8, 32, 128):
        job = method(id="atp_ig", ig_steps=steps, components=["resid_pre"])
        result = score_alike(integrated_gradients, model, pairs, job, batch_tokens=512)
        whole = result.clean_metric - result.corrupted_metric
        sums = result.scores[Component.RESID_PRE][:, 0].sum(axis=(1, 2))
        missing.append(np.abs(sums - whole).max())
    assert missing[0] > 2 * missing[1]
    terms = max(terms_of(model.module, pair) for pair in pairs)
    assert_near(sums, whole, terms, truncation=1e-3 * np.abs(whole).max())


@pytest.mark.parametrize("name", ["gpt2", "mistral_short_window"])
def test_scores_do_not_depend_on_batching(name: str) -> None:
    model = tiny_model(name)
    pairs = encoded(random_pairs(4, 9, 4) + random_pairs(2, 8, 0, seed=3))
    job = method(id="atp_ig", ig_steps=5, components=["z", "resid_pre", "k"])
    large = score(model, pairs, job)
    for other in (score(model, pairs, job, batch_tokens=1), score(model, pairs[::-1], job, batch_tokens=33)):
        for pair in pairs:
            assert_same_scores(other[pair.pair_id], large[pair.pair_id], terms_of(model.module, pair))


def test_more_steps_come_nearer_to_each_other() -> None:
    model, pairs = tiny_model("llama"), encoded(random_pairs(1, 9, 4))
    fine, coarse, coarser = (
        score(model, pairs, method(id="atp_ig", ig_steps=steps))[0][Component.Z] for steps in (64, 8, 1)
    )
    assert np.abs(coarse - fine).max() < np.abs(coarser - fine).max() / 4


def test_ig_steps_belong_to_atp_ig_alone() -> None:
    def parameters(**of_method: object) -> dict[str, object]:
        data = {
            "name": "job",
            "models": [{"id": "m", "prepend_bos": False}],
            "datasets": [{"id": "d", "path": "d.parquet"}],
            "methods": [of_method],
        }
        return dict(parse_spec(data, source="job").methods[0].parameters)

    assert parameters(id="atp_ig") == {"ig_steps": 8}
    assert parameters(id="fine", kind="atp_ig", ig_steps=50) == {"ig_steps": 50}
    assert parameters(id="atp") == {}
    assert parameters(id="atp", ig_steps=None) == {}, "as manifests of earlier releases have it"
    with pytest.raises(JobError, match=r"methods\[0\]: ig_steps is for kind atp_ig; kind is exact"):
        parameters(id="exact", ig_steps=5)
    with pytest.raises(JobError, match=r"methods\[0\].ig_steps: .*greater than or equal to 1, not 0"):
        parameters(id="atp_ig", ig_steps=0)
    with pytest.raises(
        JobError, match=r"methods\[0\].steps: unknown key; known here: .*direction, reference, ig_steps, .*at$"
    ):
        parameters(id="atp_ig", steps=5)
