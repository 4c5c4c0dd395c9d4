"""Relevance patching against models whose own code was changed to have the rules' gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrib_batch.attribution.relevance import relevance_rules
from attrib_batch.errors import ModelError
from attrib_batch.models.families import Architecture, architecture_of
from attrib_batch.models.load import wrap_model
from tests.support import oracle, teacher_forced
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_same_scores
from tests.support.scored import encoded, method, score, score_together, tiny_model
from tests.support.teacher_forced import COMPONENTS, random_pairs_with_answers, whole
from tests.support.terms import terms_of
from tests.support.tiny_models import EVERY_ARCHITECTURE, tiny_tokenizer

GATES = ("gate_proj", "gate_up_proj")
ORDINARY = [name for name, make in EVERY_ARCHITECTURE.items() if architecture_of(make().config).mlp is not None]


class ConstantScales(TorchFunctionMode):
    """Whatever a norm divides by is a constant."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.rsqrt:
            return function(*args, **kwargs).detach()
        if function is nn.functional.layer_norm:
            return self.layer_norm(*args, **kwargs)
        return function(*args, **kwargs)

    def layer_norm(
        self, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        assert tuple(shape) == x.shape[-1:]
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
        scaled = scaled if weight is None else scaled * weight
        return scaled if bias is None else scaled + bias


def by_ratio(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def changed(x: Tensor) -> Tensor:
        y = forward(x)
        return x * (y / x).detach()

    return changed


def halved(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x / 2 + (x / 2).detach())


@contextmanager
def with_rules(model: nn.Module) -> Iterator[None]:
    """Change the model's own code: activations by what they are called in transformers, MLPs by the gates they have."""
    with ExitStack() as stack, ConstantScales():
        for name, module in model.named_modules():
            if "vision" in name:
                continue
            if name.endswith((".act", ".act_fn", ".activation_fn", ".gelu_impl")):
                module.forward = by_ratio(module.forward)
                stack.callback(module.__dict__.pop, "forward")
            if any(hasattr(module, gate) for gate in GATES):
                module.down_proj.forward = halved(module.down_proj.forward)
                stack.callback(module.down_proj.__dict__.pop, "forward")
        yield


@pytest.mark.parametrize("name", ORDINARY)
def test_every_component_of_every_architecture_with_ordinary_mlps(name: str) -> None:
    model, plain = tiny_model(name), EVERY_ARCHITECTURE[name]()
    components = list(model.architecture.sites)
    pairs = random_pairs(2, 11, 7) + random_pairs(1, 9, 0, seed=1)
    noise = method(id="noise", kind="relp", components=["z"], direction="noise")
    ours = score_together(model, encoded(pairs), [method(id="relp", components=components), noise])
    for index, pair in enumerate(pairs):
        metric, terms = oracle.logit_diff(pair.answers, pair.wrong_answers), terms_of(plain, pair)
        asked = (plain, pair.clean, pair.corrupted, metric)
        with with_rules(plain):
            theirs = oracle.atp(*asked, components, direction="denoise")
            mirrored = oracle.atp(*asked, ["z"], direction="noise")
        assert_same_scores(ours["relp"][index], theirs, terms)
        assert_same_scores(ours["noise"][index], mirrored, terms)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_whole_answers(name: str, direction: Any) -> None:
    plain, pairs = EVERY_ARCHITECTURE[name](), random_pairs_with_answers()
    options = {"metric": "sequence_logprob_diff", "components": list(COMPONENTS), "direction": direction}
    ours = score(tiny_model(name), whole(pairs), method(id="relp", **options))
    for index, pair in enumerate(pairs):
        with with_rules(plain):
            theirs = teacher_forced.atp(plain, pair, direction=direction)
        assert_same_scores(ours[index], theirs, teacher_forced.terms(plain, pair))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_zeros_in_place_of_the_other_prompt(name: str) -> None:
    plain, pairs = EVERY_ARCHITECTURE[name](), random_pairs_with_answers()
    job = method(id="relp", reference="zero", metric="sequence_logprob_diff", components=list(COMPONENTS))
    alone = [replace(pair, corrupted=pair.clean, first_difference=0) for pair in whole(pairs)]
    ours = score(tiny_model(name), alone, job)
    for index, pair in enumerate(pairs):
        zeros = {key: torch.zeros_like(value) for key, value in teacher_forced.activations(plain, pair.clean).items()}
        with with_rules(plain):
            theirs = teacher_forced.atp(plain, pair, direction="noise", other=zeros)
        assert_same_scores(ours[index], theirs, teacher_forced.terms(plain, pair))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_rules_change_gradients_and_nothing_else(name: str) -> None:
    model, pairs = tiny_model(name), encoded(random_pairs(2, 9, 4))
    before, relevant = (score(model, pairs, method(id=kind, components=["z", "resid_pre"])) for kind in ("atp", "relp"))
    after = score(model, pairs, method(components=["z", "resid_pre"]))
    for pair_id, scores in before.items():
        assert relevant[pair_id].clean_metric == scores.clean_metric
        assert relevant[pair_id].corrupted_metric == scores.corrupted_metric
        for component, values in scores.items():
            assert np.array_equal(after[pair_id][component], values), "no rule stays behind"
            assert np.abs(relevant[pair_id][component] - values).max() > 0.01 * np.abs(values).max()


class Clipped(nn.Module):
    """Something called a norm that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(48))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.clamp(-1, 1)


class ClippedNorm(Clipped):
    """Under the name of a norm."""


def test_a_norm_of_another_kind_is_refused_by_name() -> None:
    model = EVERY_ARCHITECTURE["llama"]()
    model.model.layers[1].post_attention_layernorm = ClippedNorm()
    wrapped = wrap_model(model, tiny_tokenizer())
    with pytest.raises(ModelError, match="there is no rule for ClippedNorm, which divides by neither"):
        score(wrapped, encoded(random_pairs(1, 9, 4)), method(id="relp"))


def test_a_family_that_does_not_say_where_its_mlps_are_is_refused_by_name() -> None:
    model = tiny_model("llama")
    silent = replace(model.architecture, mlp=None, mlp_because=Architecture.mlp_because)
    with (
        pytest.raises(ModelError, match="no rules for llama: its family does not say what of its MLPs is not linear"),
        relevance_rules(replace(model, architecture=silent)),
    ):
        pass
