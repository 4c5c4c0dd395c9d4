"""The oracle against things that can be known without it: sums, hand computation, finite differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.support import oracle
from tests.support.demo_pairs import FIRST_WORD, NAME_IDS, random_pairs
from tests.support.hooked_run import QKV, run, sites_of
from tests.support.tiny_models import ARCHITECTURES, N_LAYERS, SHORT_WINDOW, save_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

LENGTH, FIRST_DIFFERENCE = 7, 3
PAIR = random_pairs(1, LENGTH, FIRST_DIFFERENCE)[0]
METRIC = oracle.logit_diff(PAIR.answers, PAIR.wrong_answers)
DIRECTIONS = ("denoise", "noise")

each_architecture = pytest.mark.parametrize("model", list(ARCHITECTURES), indirect=True)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return ARCHITECTURES[request.param]()


def assert_close(got: Any, expected: Any, share: float = 1e-5) -> None:
    """Equal up to a share of the largest expected number."""
    got, expected = (torch.as_tensor(x).detach() for x in (got, expected))
    assert (got - expected).abs().max() <= share * expected.abs().max()


# What the components are


@each_architecture
def test_own_attention_computes_what_the_model_computes(model: PreTrainedModel) -> None:
    assert LENGTH > SHORT_WINDOW  # or no sliding window would be tested
    before = model.config._attn_implementation
    own = run(model, PAIR.clean, own_attention=True)
    assert model.config._attn_implementation == before
    assert_close(own.logits, model(torch.tensor([PAIR.clean])).logits[0, -1])
    hooks = run(model, PAIR.clean, own_attention=False)
    for key, tensor in hooks.seen.items():
        assert_close(own.seen[key], tensor)


@each_architecture
def test_components_add_up_to_the_residual_stream(model: PreTrainedModel) -> None:
    seen = run(model, PAIR.clean, own_attention=False).seen
    for layer in range(N_LAYERS):
        after_attention = seen["resid_pre", layer] + seen["attn_out", layer]
        if "resid_mid" in oracle.component_names(model):
            assert_close(seen["resid_mid", layer], after_attention)
        assert_close(seen["resid_post", layer], after_attention + seen["mlp_out", layer])
        if layer:
            assert torch.equal(seen["resid_pre", layer], seen["resid_post", layer - 1])


@each_architecture
def test_heads_have_the_shapes_of_the_configuration(model: PreTrainedModel) -> None:
    config = model.config
    n_kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    seen = run(model, PAIR.clean, own_attention=True).seen
    heads = {name: seen[name, 0].shape[1] for name in QKV}
    assert heads == {"q": config.num_attention_heads, "k": n_kv_heads, "v": n_kv_heads}
    assert seen["z", 0].shape[-1] == config.num_attention_heads * seen["q", 0].shape[-1]


def _rotate(tensor: Tensor, theta: float, width: int) -> Tensor:
    """Rotary embedding of [head, position, feature]: features i and i + width/2 are one complex number."""
    half = width // 2
    frequencies = theta ** (-torch.arange(half) / half)
    angles = torch.arange(tensor.shape[1])[:, None] * frequencies
    turned = torch.complex(tensor[..., :half], tensor[..., half:width]) * torch.polar(torch.ones(()), angles)
    return torch.cat([turned.real, turned.imag, tensor[..., width:]], dim=-1)


def _llama_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(
        projection(states)[0].unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj)
    )


def _qwen3_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    query, key = _llama_projections(attention, states)
    return attention.q_norm(query), attention.k_norm(key)


def _olmo2_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    flat = attention.q_norm(attention.q_proj(states))[0], attention.k_norm(attention.k_proj(states))[0]
    return tuple(tensor.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for tensor in flat)


def _neox_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    by_head = attention.query_key_value(states)[0].unflatten(-1, (-1, 3, attention.head_size))
    return by_head[:, :, 0].transpose(0, 1), by_head[:, :, 1].transpose(0, 1)


def _gpt2_projections(attention: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    by_kind = attention.c_attn(states)[0].unflatten(-1, (3, -1, attention.head_dim))
    return by_kind[:, 0].transpose(0, 1), by_kind[:, 1].transpose(0, 1)


@pytest.mark.parametrize(
    ("model", "attention", "norm", "projections", "rotary_share"),
    [
        ("llama", "self_attn", "input_layernorm", _llama_projections, 1),
        ("gemma2", "self_attn", "input_layernorm", _llama_projections, 1),
        ("phi", "self_attn", "input_layernorm", _llama_projections, 0.5),
        ("qwen3", "self_attn", "input_layernorm", _qwen3_projections, 1),
        ("gemma3", "self_attn", "input_layernorm", _qwen3_projections, 1),
        ("olmo2", "self_attn", None, _olmo2_projections, 1),
        ("gpt_neox", "attention", "input_layernorm", _neox_projections, 0.5),
        ("gpt2", "attn", "ln_1", _gpt2_projections, 0),
    ],
    indirect=["model"],
)
def test_recorded_queries_and_keys_are_rotated_projections(
    model: PreTrainedModel,
    attention: str,
    norm: str | None,
    projections: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
    rotary_share: float,
) -> None:
    seen = run(model, PAIR.clean, own_attention=True).seen
    for index, layer in enumerate(model.get_submodule(sites_of(model).layers)):
        states = seen["resid_pre", index]
        states = states if norm is None else layer.get_submodule(norm)(states)
        for name, before in zip("qk", projections(layer.get_submodule(attention), states), strict=True):
            rotary = getattr(model.config, "rope_parameters", None) or {"rope_theta": 1.0}
            theta = rotary.get(getattr(model.config, "layer_types", ["-"] * N_LAYERS)[index], rotary)
            width = int(before.shape[-1] * rotary_share)
            assert_close(seen[name, index][0], _rotate(before, theta["rope_theta"], width))


# Gradients against finite differences


@each_architecture
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_atp_is_the_slope_of_exact(model: PreTrainedModel, direction: oracle.Direction) -> None:
    components = oracle.component_names(model)
    scores = oracle.atp(model, PAIR.clean, PAIR.corrupted, METRIC, components, direction=direction)
    step = 0.007
    for name in components if direction == "denoise" else ["z", "k"]:
        ahead, behind = (
            oracle.exact(model, PAIR.clean, PAIR.corrupted, METRIC, name, direction=direction, fraction=fraction)
            for fraction in (step, -step)
        )
        assert np.abs(scores[name]).max() > 0.01
        assert_close((ahead - behind) / (2 * step), scores[name], share=0.01)


@each_architecture
def test_nothing_differs_before_the_first_difference(model: PreTrainedModel) -> None:
    components = oracle.component_names(model)
    scores = oracle.atp(model, PAIR.clean, PAIR.corrupted, METRIC, components, direction="denoise")
    for name in components:
        assert np.abs(scores[name][:, :, :FIRST_DIFFERENCE]).max() == 0
        assert np.abs(scores[name][:, :, FIRST_DIFFERENCE:]).max() > 0


@pytest.mark.parametrize("model", ["gpt2", "gemma2"], indirect=True)
def test_identical_prompts_score_zero(model: PreTrainedModel) -> None:
    components = oracle.component_names(model)
    pair = (model, PAIR.clean, PAIR.clean, METRIC)
    for scores in (
        oracle.atp(*pair, components, direction="denoise"),
        oracle.atp_ig(*pair, components, direction="noise", ig_steps=2),
        oracle.atp_star(*pair, components, direction="noise"),
        {name: oracle.exact(*pair, name, direction="denoise") for name in components},
    ):
        assert all(not score.any() for score in scores.values())


# Activation patching replaces what it says


@each_architecture
def test_patching_the_whole_last_state_gives_the_other_run(model: PreTrainedModel) -> None:
    """All that the logits see of the last layer is the residual stream at the last position."""
    clean, corrupted = (METRIC(model(torch.tensor([ids])).logits[0, -1]).item() for ids in (PAIR.clean, PAIR.corrupted))
    for name in {"resid_mid", "resid_post"} & set(oracle.component_names(model)):
        for direction, gain in (("denoise", clean - corrupted), ("noise", corrupted - clean)):
            score = oracle.exact(model, PAIR.clean, PAIR.corrupted, METRIC, name, direction=direction)
            assert score[-1, 0, -1] == pytest.approx(gain, abs=1e-4)


@each_architecture
def test_patching_the_only_position_that_differs_gives_the_other_run(model: PreTrainedModel) -> None:
    pair = random_pairs(1, LENGTH, LENGTH - 3, changed_share=0)[0]
    score = oracle.exact(model, pair.clean, pair.corrupted, METRIC, "resid_pre", direction="denoise")
    clean, corrupted = (METRIC(model(torch.tensor([ids])).logits[0, -1]).item() for ids in (pair.clean, pair.corrupted))
    assert score[0, 0, LENGTH - 3] == pytest.approx(clean - corrupted, abs=1e-4)


# By hand


class _Averaging(nn.Module):
    """A model to compute on paper: one layer, two heads of one feature, no norm, everything linear.

    The embedding of token i is (i, i * i). Attention averages over the positions so far; its projection swaps
    the two heads and doubles. The two logits are the two features of the residual stream.
    """

    class _Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_proj = nn.Linear(2, 2, bias=False)
            self.c_proj.weight.data = torch.tensor([[0.0, 2.0], [2.0, 0.0]])

        def forward(self, states: Tensor) -> Tensor:
            counts = torch.arange(1, states.shape[1] + 1)[None, :, None]
            return self.c_proj(states.cumsum(1) / counts)

    class _Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = _Averaging._Attention()
            self.ln_2 = nn.Identity()
            self.mlp = nn.Linear(2, 2, bias=False)
            self.mlp.weight.data.zero_()

        def forward(self, states: Tensor) -> Tensor:
            states = states + self.attn(states)
            return states + self.mlp(self.ln_2(states))

    class _Logits:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(5, 2)
        self.transformer.wte.weight.data = torch.tensor([[i, i * i] for i in range(5)]).float()
        self.transformer.h = nn.ModuleList([_Averaging._Layer()])
        self.config = type("Config", (), {"model_type": "gpt2", "num_attention_heads": 2})()

    def forward(self, ids: Tensor, **_: Any) -> _Averaging._Logits:
        return self._Logits(self.transformer.h[0](self.transformer.wte(ids)))


def test_scores_computed_by_hand() -> None:
    """M = logit 0 - logit 1 = (x0 + 2 z1) - (x1 + 2 z0) at the last position; z is the average of the x.

    Clean embeddings (1,1), (3,9), averages at the last position (2,5): M = (3+10) - (9+4) = 0.
    Corrupted (1,1), (2,4), averages (1.5,2.5): M = (2+5) - (4+3) = 0.
    """
    names = ["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    pair = (_Averaging(), [1, 3], [1, 2], oracle.logit_diff([0], [1]))
    expected = {
        # dM/dx = (1, -1) directly and (-1, 1) through attention: it cancels.
        "resid_pre": [[[0, 0]]],
        # dM/dz = (-2, 2); the differences at the last position are 0.5 and 2.5.
        "z": [[[0, -1], [0, 5]]],
        # The projection swaps: attn_out differs by (5, 1).
        "attn_out": [[[0, 4]]],
        # x differs by (1, 5), so resid_mid by (6, 6).
        "resid_mid": [[[0, 0]]],
        "mlp_out": [[[0, 0]]],
        "resid_post": [[[0, 0]]],
    }
    for direction, sign in (("denoise", 1), ("noise", -1)):
        scores = oracle.atp(*pair, names, direction=direction)
        averaged = oracle.atp_ig(*pair, names, direction=direction, ig_steps=3)
        for name in names:
            hand = sign * np.array(expected[name], dtype=float)
            np.testing.assert_allclose(scores[name], hand, atol=1e-5)
            np.testing.assert_allclose(averaged[name], hand, atol=1e-5)
            np.testing.assert_allclose(oracle.exact(*pair, name, direction=direction), hand, atol=1e-5)


# Integrated gradients


@each_architecture
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_integrated_gradients_are_complete(model: PreTrainedModel, direction: oracle.Direction) -> None:
    pair = (model, PAIR.clean, PAIR.corrupted, METRIC)
    attributed, total = oracle.embedding_completeness(*pair, direction=direction, ig_steps=30)
    assert attributed == pytest.approx(total, abs=0.01)
    # The first layer's input is the embeddings plus a constant: its scores are the same sum, by position.
    scores = oracle.atp_ig(*pair, ["resid_pre"], direction=direction, ig_steps=30)
    assert scores["resid_pre"][0].sum() == pytest.approx(attributed, abs=1e-4)


# AtP*


def _linear_after_attention() -> PreTrainedModel:
    """One layer, grouped queries, no MLP, no final norm: logits are linear in the attention probabilities."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config).eval()
    model.model.norm = nn.Identity()
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    return model


@pytest.mark.parametrize("component", ["q", "k"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_qk_fix_is_exact_where_all_else_is_linear(component: str, direction: oracle.Direction) -> None:
    # One layer: a query counts at the last position alone, so the prompts must differ there.
    prompts = random_pairs(1, LENGTH, FIRST_DIFFERENCE, changed_share=1)[0]
    pair = (_linear_after_attention(), prompts.clean, prompts.corrupted, METRIC)
    measured = oracle.exact(*pair, component, direction=direction)
    fixed = oracle.atp_star(*pair, [component], direction=direction, grad_drop=False)[component]
    plain = oracle.atp(*pair, [component], direction=direction)[component]
    assert_close(fixed, measured, share=1e-4)
    assert np.abs(plain - measured).max() > 0.05 * np.abs(measured).max()


@each_architecture
def test_grad_drop_in_the_last_layer_is_the_absolute_score(model: PreTrainedModel) -> None:
    """Nothing lies behind the last layer, so dropping any other layer leaves its scores as they are."""
    pair = (model, PAIR.clean, PAIR.corrupted, METRIC)
    names = [*QKV, "z", "attn_out", "mlp_out", "resid_post"]
    plain = oracle.atp(*pair, names, direction="denoise")
    dropped = oracle.atp_star(*pair, names, direction="denoise", qk_fix=False)
    for name in names:
        assert_close(dropped[name][-1], np.abs(plain[name][-1]))
        assert not np.allclose(dropped[name][0], np.abs(plain[name][0]), atol=1e-3)


@pytest.mark.parametrize("model", ["gpt2", "gpt_neox", "gemma3"], indirect=True)
def test_a_dropped_layer_is_a_constant(model: PreTrainedModel) -> None:
    """The gradient with a layer dropped is the slope of a model where that layer adds a constant."""
    base = run(model, PAIR.corrupted, own_attention=False, dropped_layer=1)
    slope = torch.autograd.grad(METRIC(base.logits), base.seen["attn_out", 0])[0]
    move = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))

    sites = sites_of(model)
    layers = model.get_submodule(sites.layers)

    def metric(step: float) -> float:
        hooks = [
            layers[1].get_submodule(site).register_forward_hook(lambda *_, fixed=base.seen[name, 1]: fixed)
            for name, site in (("attn_out", sites.attn_out), ("mlp_out", sites.mlp_out))
        ]
        moved = base.seen["attn_out", 0] + step * move
        hooks.append(layers[0].get_submodule(sites.attn_out).register_forward_hook(lambda *_: moved))
        try:
            with torch.no_grad():
                return METRIC(model(torch.tensor([PAIR.corrupted])).logits[0, -1]).item()
        finally:
            for hook in hooks:
                hook.remove()

    assert (metric(0.01) - metric(-0.01)) / 0.02 == pytest.approx((slope * move).sum().item(), rel=0.01)


# Metrics


def test_metrics_by_hand() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0]).log()  # probabilities 1/6, 1/3, 1/2
    assert oracle.logit_diff([0, 1], [2])(logits).item() == pytest.approx(np.log(2) / 2 - np.log(3))
    assert oracle.prob_diff([0, 1], [2])(logits).item() == pytest.approx(0, abs=1e-6)
    assert oracle.log_prob([0, 2])(logits).item() == pytest.approx(np.log(2 / 3))
    even = torch.zeros(3)
    by_hand = sum(p * np.log(p * 3) for p in (1 / 6, 1 / 3, 1 / 2))
    assert oracle.kl(logits)(even).item() == pytest.approx(by_hand)
    assert oracle.kl(logits)(logits).item() == pytest.approx(0, abs=1e-6)


# The tiny models and demo pairs themselves


@each_architecture
def test_a_tiny_model_survives_saving(model: PreTrainedModel, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["model"]
    folder = save_tiny(name, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([PAIR.clean])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    if name != "qwen2":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("w0 Mary w119")["input_ids"] == [FIRST_WORD, NAME_IDS[0], 127]


def test_demo_pairs_share_their_prefix() -> None:
    pairs = random_pairs(20, 10, 4, seed=1)
    assert pairs == random_pairs(20, 10, 4, seed=1)
    for pair in pairs:
        assert len(pair.clean) == len(pair.corrupted) == 10
        assert pair.clean[:4] == pair.corrupted[:4]
        assert pair.clean[4] != pair.corrupted[4]
        assert pair.answers
        assert pair.wrong_answers
        assert not set(pair.answers) & set(pair.wrong_answers)
