"""The tiny models and demo pairs themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from tests.support.demo_pairs import FIRST_WORD, NAME_IDS, random_pairs
from tests.support.near import assert_near, estimated_terms
from tests.support.oracle_checks import PAIR, every_architecture
from tests.support.tiny_models import save_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


@every_architecture
def test_a_tiny_model_survives_saving(model: PreTrainedModel, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["model"]
    folder = save_tiny(name, tmp_path)
    auto = AutoModelForImageTextToText if name == "mistral3" else AutoModelForCausalLM
    loaded = auto.from_pretrained(folder)
    ids = torch.tensor([PAIR.clean])
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(read[key], tensor) for key, tensor in saved.items())
    logits = model(ids).logits
    assert_near(loaded(ids).logits, logits, estimated_terms(logits))
    if not name.startswith("qwen2"):
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
