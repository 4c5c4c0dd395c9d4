"""The precision that scores are computed in, and that a process has its own again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.models.arithmetic import describe_arithmetic, exact_arithmetic
from tests.support.demo_pairs import random_pairs
from tests.support.scored import encoded, method, tiny_model

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = MATMUL.allow_bf16_reduced_precision_reduction
    yield
    torch.set_float32_matmul_precision("highest")
    MATMUL.allow_bf16_reduced_precision_reduction = before
    torch.use_deterministic_algorithms(False)


def test_products_are_exact_within_and_as_before_after() -> None:
    torch.set_float32_matmul_precision("high")
    MATMUL.allow_bf16_reduced_precision_reduction = True
    with exact_arithmetic(deterministic=True):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not MATMUL.allow_bf16_reduced_precision_reduction
        assert not MATMUL.allow_fp16_reduced_precision_reduction
        assert torch.are_deterministic_algorithms_enabled()
    with suppress(KeyError), exact_arithmetic(deterministic=True):
        raise KeyError("in the middle")
    assert torch.get_float32_matmul_precision() == "high"
    assert MATMUL.allow_bf16_reduced_precision_reduction
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_process_that_uses_torchs_newer_interface_has_its_precision_again() -> None:
    """Where it does, the older interface raises when it is read."""
    MATMUL.fp32_precision = "tf32"
    with exact_arithmetic():
        assert MATMUL.fp32_precision == "ieee"
    assert MATMUL.fp32_precision == "tf32"


def test_determinism_is_left_to_the_process_unless_it_is_asked_for() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    with exact_arithmetic():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    here = describe_arithmetic(torch.device("cpu"), deterministic=True)
    assert here == {
        "device": "cpu", "torch": torch.__version__, "cuda": None, "float32_matmul_precision": "highest",
        "deterministic": True,
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    there = describe_arithmetic(torch.device("cuda", 1), deterministic=False)
    assert (there["device"], there["cuda"], there["deterministic"]) == ("card 1", "13.0", False)


@pytest.mark.parametrize("kind", ["atp", "atp_ig", "atp_star", "relp", "exact"])
def test_every_method_has_deterministic_kernels(kind: str) -> None:
    """On the CPU at least: torch raises there too for an operation that has none."""
    model, pairs = tiny_model("llama"), encoded(random_pairs(2, 9, 4))
    job = method(id=kind, components=["z", "q", "k", "mlp_out", "resid_post"])
    found = []
    with exact_arithmetic(deterministic=True):
        for _ in range(2):
            [(_, outcome)] = score_pairs(model, pairs, [job], TokenBudget(4096))
            assert isinstance(outcome, ScoredBatch), outcome
            found.append(outcome.result.scores)
    for component, scores in found[0].items():
        assert (scores == found[1][component]).all()
