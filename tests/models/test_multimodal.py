"""The text models of multimodal checkpoints: loaded from a folder as it is, with the logits of the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from attrib_batch.models.load import load_model
from attrib_batch.spec import Component, ModelSpec
from tests.support.demo_pairs import random_pairs
from tests.support.near import assert_near, estimated_terms
from tests.support.scored import encoded, method, score
from tests.support.tiny_models import MORE_ARCHITECTURES, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VISION = {
    "gemma3": {"model_type": "siglip_vision_model", "num_hidden_layers": 1, "num_attention_heads": 2},
    "llama4": {"num_hidden_layers": 1, "num_attention_heads": 2, "vision_output_dim": 16, "projector_input_dim": 16},
    "mistral3": {"model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 2},
    "qwen3_5": {"depth": 1, "num_heads": 2, "out_hidden_size": 48},
}


@pytest.mark.parametrize("kind", VISION)
def test_the_text_model_of_a_multimodal_folder_is_scored(kind: str, tmp_path: Path) -> None:
    text = MORE_ARCHITECTURES["gemma3_multimodal" if kind == "gemma3" else kind]().config.get_text_config()
    small = {"hidden_size": 16, "image_size": 28, "patch_size": 14, "projector_output_dim": 16}
    intermediate = {"intermediate_size": 64 if kind == "llama4" else 16}
    config = AutoConfig.for_model(
        kind, text_config=text.to_dict(), vision_config={**small, **intermediate, **VISION[kind]}
    )
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(ModelSpec(id=str(tmp_path), prepend_bos=False))
    ids = torch.arange(20, 30).unsqueeze(0)
    logits = whole(ids).logits
    assert_near(model.module(ids).logits, logits, estimated_terms(logits))
    scores = score(model, encoded(random_pairs(1, 8, 4)), method(components=["mlp_out"]))[0]
    assert scores[Component.MLP_OUT][..., 4:].any()
