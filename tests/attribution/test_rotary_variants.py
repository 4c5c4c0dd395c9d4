"""Scores of models whose rotary embedding looks at the prompt's length: on either side of the switch, and across it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from attrib_batch.attribution.passes.padded import PrefixCache
from attrib_batch.models.load import wrap_model
from attrib_batch.models.rotary import prefix_is_reusable
from tests.support import oracle
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.near import FLOAT32, STEPS, assert_same_scores
from tests.support.scored import encoded, method, score
from tests.support.terms import terms_of
from tests.support.tiny_models import N_KV_HEADS, VOCABULARY, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SWITCH = 16
VARIANTS = ["default", *sorted(ROPE_INIT_FUNCTIONS)]
"""Every variant that transformers has; a new one is tested as soon as it is there."""
PARAMETERS: dict[str, dict[str, Any]] = {
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": SWITCH,
        "short_factor": [1.0] * 6,
        "long_factor": [3.0] * 6,
    },
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": SWITCH,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": SWITCH},
    "default": {},
}
COMPONENTS = ["z", "k", "resid_pre"]


def _model(variant: str) -> PreTrainedModel:
    """A tiny Llama whose switch, where the variant has one, lies at ``SWITCH`` tokens."""
    parameters = {"rope_type": variant, "rope_theta": 10000.0, **PARAMETERS.get(variant, {"factor": 4.0})}
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=N_KV_HEADS, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
        max_position_embeddings=SWITCH if variant == "dynamic" else 4 * SWITCH, rope_parameters=parameters,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def _keys(model: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return [layer.keys for layer in cache.layers]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prefix_that_is_reused_has_the_keys_of_the_whole_prompt(variant: str) -> None:
    [pair] = random_pairs(1, 2 * SWITCH, 0)
    for prefix, whole in [(5, 10), (15, 16), (15, 17), (16, 17), (12, 23), (17, 23), (20, 32)]:
        mine = _keys(_model(variant), pair.clean[:prefix])
        theirs = _keys(_model(variant), pair.clean[:whole])
        off = max((a - b[:, :, :prefix]).abs().max().item() for a, b in zip(mine, theirs, strict=True))
        rounding = STEPS * FLOAT32 * max(keys.abs().max().item() for keys in theirs)
        assert prefix_is_reusable(_model(variant).config, prefix, whole) == (off < rounding), (prefix, whole, off)


@pytest.mark.parametrize("kind", ["atp", "atp_ig", "atp_star"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_whole_prompts(variant: str, kind: str) -> None:
    """The pairs differ below the switch and are longer than it; some differ above it, some are shorter.

    In float64: between the two prompts, where integrated gradients are taken, gradients can be larger than on them, and
    so can their rounding.
    """
    pairs = [
        *random_pairs(2, 23, 12),
        *random_pairs(1, 23, 18, seed=1),
        *random_pairs(1, 23, 0, seed=2),
        *random_pairs(1, 11, 5, seed=3),
    ]
    options = {"ig_steps": 2} if kind == "atp_ig" else {}
    ours = score(
        wrap_model(_model(variant).double(), tiny_tokenizer()),
        encoded(pairs),
        method(id=kind, components=COMPONENTS, **options),
    )
    for index, pair in enumerate(pairs):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        estimate = getattr(oracle, kind)
        theirs = estimate(
            _model(variant).double(), pair.clean, pair.corrupted, metric, COMPONENTS, direction="denoise", **options
        )
        assert_same_scores(ours[index], theirs, terms_of(_model(variant).double(), pair), dtype="float64")
        for component in COMPONENTS:
            assert not ours[index][component][..., : encoded(pairs)[index].first_difference].any()


def test_exact_scores_across_the_switch() -> None:
    [pair] = random_pairs(1, 19, 14)
    model = wrap_model(_model("longrope").double(), tiny_tokenizer())
    ours = score(model, encoded([pair]), method(id="exact", components=["z"]))[0]
    metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
    plain = _model("longrope").double()
    theirs = {"z": oracle.exact(plain, pair.clean, pair.corrupted, metric, "z", direction="denoise")}
    assert_same_scores(ours, theirs, terms_of(plain, pair), dtype="float64")


def test_a_start_that_prefixes_share_is_not_cached_below_the_switch() -> None:
    """Both prefixes lie above the switch, and what they share, below it."""
    start = random_pairs(1, 12, 0)[0].clean
    pairs = [
        TokenPair(start + pair.clean, start + pair.corrupted, pair.answers, pair.wrong_answers)
        for pair in random_pairs(5, 14, 8, seed=4)
    ]
    ours = score(wrap_model(_model("longrope"), tiny_tokenizer()), encoded(pairs), method())
    for index, pair in enumerate(pairs):
        metric = oracle.logit_diff(pair.answers, pair.wrong_answers)
        theirs = oracle.atp(_model("longrope"), pair.clean, pair.corrupted, metric, ["z"], direction="denoise")
        assert_same_scores(ours[index], theirs, terms_of(_model("longrope"), pair))


def test_a_failure_names_the_pair_as_it_was() -> None:
    from attrib_batch.attribution.engine import FailedPair, TokenBudget, score_pairs

    [pair] = encoded(random_pairs(1, 23, 12))
    bad = type(pair)(**{**vars(pair), "answers": (10_000,)})
    model = wrap_model(_model("longrope"), tiny_tokenizer())
    [(_, outcome)] = score_pairs(model, [bad], [method()], TokenBudget(4096))
    assert isinstance(outcome, FailedPair)
    assert outcome.pair == bad


def test_a_prefix_that_would_be_wrong_is_never_cached() -> None:
    model = wrap_model(_model("longrope"), tiny_tokenizer())
    rows = [tuple(random_pairs(1, 23, 12)[0].clean)]
    with pytest.raises(ValueError, match="12 of 23 tokens, computed alone, have other keys"):
        PrefixCache(model, rows, 12)


def test_a_variant_that_is_not_known_is_not_relied_on() -> None:
    config = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1.0})
    assert prefix_is_reusable(config, 3, 5)
    config.rope_parameters["rope_type"] = "of next year"
    assert not prefix_is_reusable(config, 3, 5)
    assert prefix_is_reusable(config, 0, 5)
