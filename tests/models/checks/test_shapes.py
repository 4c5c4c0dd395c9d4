"""The check of a model's modules and tensors against its family and its configuration."""

from __future__ import annotations

import pytest
import torch

from attrib_batch.errors import ModelError
from attrib_batch.models.checks.shapes import check_shapes, compare_shapes
from attrib_batch.models.families import architecture_of, dimensions_of
from tests.support.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_checked_on_every_architecture(name: str) -> None:
    model = ARCHITECTURES[name]()
    architecture, right = architecture_of(model.config), dimensions_of(model.config)
    check_shapes(model, architecture, right)
    wrong = type(right)(**{**vars(right), "n_kv_heads": right.n_kv_heads + 1})
    with pytest.raises(ModelError, match=r"has shape .*, expected"):
        check_shapes(model, architecture, wrong)


def test_a_missing_module_is_named() -> None:
    model = ARCHITECTURES["llama"]()
    del model.model.layers[-1].post_attention_layernorm
    with pytest.raises(ModelError, match="no module 'post_attention_layernorm'"):
        check_shapes(model, architecture_of(model.config), dimensions_of(model.config))


def test_a_module_that_is_there_and_not_used_is_named() -> None:
    config = ARCHITECTURES["llama"]().config
    with pytest.raises(ModelError, match=r"q: the model does not use its module 'self_attn\.q_proj'"):
        compare_shapes({("", "input"): torch.zeros(1, 4, 48)}, architecture_of(config), dimensions_of(config))
