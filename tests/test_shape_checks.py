"""Shapes in signatures are checked while tests run: a tensor of another shape than a signature says is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from attrib_batch.analysis.statistics.resampling import sum_by_unit
from attrib_batch.attribution.passes.places import ranges
from attrib_batch.attribution.scores import BatchScores
from attrib_batch.models.families.dimensions import Dimensions
from attrib_batch.models.families.views import flat
from attrib_batch.spec import Component

DIMENSIONS = Dimensions(n_layers=1, n_heads=2, n_kv_heads=2, head_dim=3, d_model=6, d_vocab=9, max_tokens=9)


def test_a_tensor_with_another_number_of_axes_is_refused() -> None:
    flat(torch.zeros(1, 2, 6), DIMENSIONS)
    with pytest.raises(TypeCheckError, match="pair position features"):
        flat(torch.zeros(2, 6), DIMENSIONS)


def test_a_tensor_of_another_type_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="start"):
        ranges(np.zeros(2), np.ones(2, dtype=np.int64))


def test_an_axis_has_one_size_in_a_call() -> None:
    with pytest.raises(TypeCheckError):
        sum_by_unit(np.zeros(3, dtype=np.int64), 2, np.zeros(4))


def test_a_data_class_is_checked_as_a_whole() -> None:
    scores = {Component.Z: np.zeros((2, 1, 2, 4), dtype=np.float32)}
    BatchScores(scores, np.zeros(2), np.zeros(2))
    with pytest.raises(TypeCheckError, match="corrupted_metric"):
        BatchScores(scores, np.zeros(2), np.zeros(3))
