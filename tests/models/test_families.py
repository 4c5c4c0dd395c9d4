"""The registry of families, and a family of one's own from an installed package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from nnsight.intervention.backends.local import LocalSimulationBackend
from transformers import LlamaConfig, LlamaForCausalLM

from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.errors import ModelError
from attrib_batch.models.families import FAMILIES, FAMILY_GROUP, architecture_of, known_model_types
from attrib_batch.models.load import LoadedModel, wrap_model
from attrib_batch.ndif import request
from attrib_batch.ndif.model import RemoteModel
from attrib_batch.spec import Component
from tests.support.demo_pairs import random_pairs
from tests.support.own_package import install_package
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.tiny_models import ARCHITECTURES, EVERY_ARCHITECTURE, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

OWN = """
from dataclasses import replace
from types import MappingProxyType
from einops import rearrange
from attrib_batch.models.families import Site, layer_sites, llama_like, separate
from attrib_batch.spec import Component

def heads(x, d):
    return rearrange(x, "pair position (head feature) -> pair position head feature", feature=d.head_dim)

def architecture(config):
    sites = dict(layer_sites(separate(), resid_mid="post_attention_layernorm"))
    sites[Component.Z] = Site("self_attn.o_proj", "input", heads)
    return llama_like(MappingProxyType(sites))
"""


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers the family ``own_llama``."""
    monkeypatch.delitem(sys.modules, "own_family", raising=False)
    folder = tmp_path / "site-packages"
    install_package(folder, "own_family", OWN, "own_llama = own_family:architecture", group=FAMILY_GROUP)
    monkeypatch.syspath_prepend(folder)
    return folder


def own_model() -> LoadedModel:
    """The tiny Llama under the configuration of the family of one's own."""
    llama = ARCHITECTURES["llama"]()
    module = LlamaForCausalLM(OwnConfig(**llama.config.to_dict() | {"model_type": "own_llama"}))
    module.load_state_dict(llama.state_dict())
    return wrap_model(module, tiny_tokenizer())


@pytest.mark.usefixtures("own")
def test_a_family_of_an_installed_package_is_scored() -> None:
    assert "own_llama" in known_model_types()
    model, pairs = own_model(), encoded(random_pairs(3, 9, 4))
    assert model.model_type == "own_llama"
    job = method(components=["z", "k", "resid_mid"])
    plain = score(tiny_model("llama"), pairs, job)
    for pair_id, scores in score(model, pairs, job).items():
        for component in job.components:
            assert np.array_equal(scores[component], plain[pair_id][component])


@pytest.mark.usefixtures("own", "without_shape_checks")
def test_a_family_of_an_installed_package_travels_to_a_server() -> None:
    model, pairs, jobs = own_model(), encoded(random_pairs(2, 9, 4)), [method()]
    there = RemoteModel(model.traced, "", model.tokenizer, model.architecture, model.dimensions)
    answer = request.ask(there, pairs, jobs, batch_tokens=64, backend=LocalSimulationBackend(model.traced))
    assert answer is not None
    _, outcome = next(request.outcomes(answer, pairs, jobs))
    assert isinstance(outcome, ScoredBatch), outcome
    assert outcome.result.scores[Component.Z].any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "architecture 'own_llama' cannot be loaded from own_family:architecture: ModuleNotF"),
        ("def architecture(config): 1 / 0", "own_family:architecture raises ZeroDivisionError"),
        ("def architecture(config): return 3", "own_family:architecture returns a int, expected an Architecture"),
    ],
)
def test_a_family_that_cannot_be_used_is_named(source: str, message: str, own: Path) -> None:
    (own / "own_family.py").write_text(source)
    with pytest.raises(ModelError, match=message):
        architecture_of(OwnConfig())
    sys.modules.pop("own_family", None)


def test_every_family_has_a_tiny_model() -> None:
    from_wrappers = {"llama4", "qwen3_5"}  # transformers loads their text models alone, which have names of their own
    tiny = {build().config.model_type for build in EVERY_ARCHITECTURE.values()}
    assert tiny | from_wrappers == set(FAMILIES)
    assert all(model_type in family.model_types for model_type, family in FAMILIES.items())
