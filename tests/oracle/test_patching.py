"""The oracle against what is known without it: the other run's metric, and numbers computed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.support import oracle
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near
from tests.support.oracle_checks import LENGTH, METRIC, PAIR, each_architecture
from tests.support.terms import largest_terms, terms_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Activation patching replaces what it says


@each_architecture
def test_patching_the_whole_last_state_gives_the_other_run(model: PreTrainedModel) -> None:
    """All that the logits see of the last layer is the residual stream at the last position."""
    clean, corrupted = (METRIC(model(torch.tensor([ids])).logits[0, -1]).item() for ids in (PAIR.clean, PAIR.corrupted))
    for name in {"resid_mid", "resid_post"} & set(oracle.component_names(model)):
        for direction, gain in (("denoise", clean - corrupted), ("noise", corrupted - clean)):
            score = oracle.exact(model, PAIR.clean, PAIR.corrupted, METRIC, name, direction=direction)
            assert_near(score[-1, 0, -1], gain, terms_of(model, PAIR))


@each_architecture
def test_patching_the_only_position_that_differs_gives_the_other_run(model: PreTrainedModel) -> None:
    pair = random_pairs(1, LENGTH, LENGTH - 3, changed_share=0)[0]
    score = oracle.exact(model, pair.clean, pair.corrupted, METRIC, "resid_pre", direction="denoise")
    clean, corrupted = (METRIC(model(torch.tensor([ids])).logits[0, -1]).item() for ids in (pair.clean, pair.corrupted))
    assert_near(score[0, 0, LENGTH - 3], clean - corrupted, terms_of(model, pair))


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
    terms = largest_terms(*pair)
    for direction, sign in (("denoise", 1), ("noise", -1)):
        scores = oracle.atp(*pair, names, direction=direction)
        averaged = oracle.atp_ig(*pair, names, direction=direction, ig_steps=3)
        for name in names:
            hand = sign * np.array(expected[name], dtype=float)
            assert_near(scores[name], hand, terms)
            assert_near(averaged[name], hand, terms)
            assert_near(oracle.exact(*pair, name, direction=direction), hand, terms)


# Metrics


def test_metrics_by_hand() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0]).log()  # probabilities 1/6, 1/3, 1/2
    largest = np.log(3)
    assert_near(oracle.logit_diff([0, 1], [2])(logits), np.log(2) / 2 - np.log(3), largest)
    assert_near(oracle.prob_diff([0, 1], [2])(logits), 0, largest)
    assert_near(oracle.log_prob([0, 2])(logits), np.log(2 / 3), largest)
    even = torch.zeros(3)
    by_hand = sum(p * np.log(p * 3) for p in (1 / 6, 1 / 3, 1 / 2))
    assert_near(oracle.kl(logits)(even), by_hand, largest)
    assert_near(oracle.kl(logits)(logits), 0, largest)
