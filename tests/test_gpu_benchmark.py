"""The benchmark for GPUs, on a CPU with tiny shapes: that it runs, and its arithmetic on cases worked out by hand."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import card, engine, hooks
from benchmarks.gpu.__main__ import PARTS, Part, main, run
from benchmarks.gpu.bench import TINY, Bench, Clock
from benchmarks.gpu.flops import ModelFlops
from benchmarks.gpu.memory import slope
from benchmarks.gpu.models import GPT2, LLAMA, Shape, make_pairs, tiny
from benchmarks.gpu.throughput import largest_difference
from benchmarks.gpu.transfers import Counts, render, told_of_waits

CPU = torch.device("cpu")
TINY_LLAMA = tiny(LLAMA).of(torch.float32)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(CPU, TINY, small_model=True)


@pytest.mark.parametrize("shape", [GPT2, TINY_LLAMA], ids=["gpt2", "llama"])
def test_the_engine_and_hand_written_hooks_give_the_same_scores(bench: Bench, shape: Shape) -> None:
    model = bench.model(shape)
    pairs = make_pairs(model, 9, ((7, 3), (9, 5), (12, 2)))
    ours, theirs = engine.scores_of(model, pairs, 64), hooks.scores_of(model, pairs, 4)
    assert {pair.pair_id: scores.shape[-1] for pair, scores in zip(pairs, ours.values(), strict=True)}
    assert largest_difference(ours, theirs) < 1e-5
    assert all(not ours[pair.pair_id][..., : pair.first_difference].any() for pair in pairs)


@pytest.mark.parametrize("shape", [GPT2, TINY_LLAMA], ids=["gpt2", "llama"])
def test_operations_are_those_that_torch_counts(bench: Bench, shape: Shape) -> None:
    """Forward and backward through every layer, attention written out, which computes what lies ahead as well."""
    module, n = bench.model(shape).module, 11
    config = module.config
    module.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            hidden = module.base_model(torch.arange(n)[None], use_cache=False).last_hidden_state
        forward = counter.get_total_flops()
        start = module.get_input_embeddings().weight[:n].clone()[None].requires_grad_()
        with FlopCounterMode(display=False) as counter:
            module.base_model(inputs_embeds=start, use_cache=False).last_hidden_state.sum().backward()
        both = counter.get_total_flops()
    finally:
        module.set_attn_implementation("sdpa")
    assert hidden.shape == (1, n, config.hidden_size)
    ours = ModelFlops.of(config)
    square, triangle = n * n, n * (n + 1) // 2
    products = 2 * ours.attended * config.num_hidden_layers
    assert forward == ours.forward(0, n) + products * (square - triangle)
    # Two gradients for each product of attention; and below the first layer's z, where ours stops, nothing is needed.
    below = n * (ours.queries + ours.keys_and_values) + 2 * 2 * ours.attended * triangle
    assert both - forward == ours.backward(0, n) + below + 2 * products * (square - triangle)


def test_operations_of_a_pair_by_hand() -> None:
    """Two layers of width 2, one head, an MLP of width 8: a prefix of one token, suffixes of two."""
    config = SimpleNamespace(model_type="gpt2", hidden_size=2, n_inner=None, num_hidden_layers=2, num_attention_heads=1)
    flops = ModelFlops.of(config)
    assert (flops.queries, flops.keys_and_values, flops.output, flops.mlp, flops.attended) == (8, 16, 8, 64, 4)
    pair: Any = SimpleNamespace(n_tokens=3, first_difference=1, answers=(1,), wrong_answers=(2,))
    prefix = (96 + 2 * 4 * 1) + 16
    suffix = 2 * (2 * 96 + 2 * 4 * 5)  # queries at 1 and 2 see 2 and 3 keys
    above = 2 * 96 + 2 * 4 * 5 + 2 * 4 * 3  # keys and values: the suffix's own, 1 and 2
    assert flops.pair(pair) == prefix + 2 * suffix + above + 2 * (8 + 64) + 3 * 2 * 2 * 2


def test_peaks_are_found_by_a_cards_name() -> None:
    assert card.stated_peak("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989.4
    assert card.stated_peak("NVIDIA H100 PCIe", torch.bfloat16) == 756.0
    assert card.stated_peak("NVIDIA H200", torch.float32) == 66.9
    assert card.stated_peak("CPU", torch.float32) is None


def test_memory_that_stays_as_it_is_once_caches_are_full_does_not_grow() -> None:
    assert slope([0, 50, 100, 100, 100, 100, 100, 100]) == pytest.approx(0.0)
    assert slope([5.0 * chunk for chunk in range(40)]) == pytest.approx(5.0)
    assert slope([7]) == 0.0


def event(name: str, start: float, end: float, device: str = "DeviceType.CPU") -> Any:
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))


def test_what_a_profile_says_is_counted_for_a_micro_batch() -> None:
    gpu = "DeviceType.CUDA"
    counts = Counts.of(
        [
            event("aten::mm", 0, 10),
            *[event("cudaLaunchKernel", at, at + 1) for at in range(6)],
            event("gemm", 20, 60, gpu),
            event("gemm", 60, 80, gpu),
            event("softmax", 80, 90, gpu),
            event("Memset (Device)", 90, 91, gpu),
            event("Memcpy HtoD (Pinned -> Device)", 91, 92, gpu),
            event("Memcpy DtoH (Device -> Pinned)", 95, 96, gpu),
            event("Memcpy DtoH (Device -> Pageable)", 96, 97, gpu),
            event("cudaStreamSynchronize", 90, 100),
        ]
    )
    assert counts.busy == pytest.approx(0.7)
    text = render(counts, 2, Counter({"contrast.py:9 rows_at": 4}))
    for line in (
        "| waits of the host | 0.5 |",
        "| copies to the device | 0.5 |",
        "| copies to the host | 1.0 |",
        "| kernels launched | 3.0 |",
        "| operations that wait, by torch's own warning | 2.0 |",
        "| share of the time with a kernel at work | 70.0% |",
        "| `contrast.py:9 rows_at` | 2.0 |",
        "| `gemm` | 85.7% |",
    ):
        assert line in text


def test_operations_that_wait_are_told_by_the_place_that_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is at hand to wait for: torch's warning is given here."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    places: Counter[str] = Counter()
    with told_of_waits(places):
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("of something else", UserWarning, stacklevel=1)
    assert modes == ["warn", "default"]
    [(where, count)] = places.items()
    assert count == 3
    assert where.startswith("test_gpu_benchmark.py:")
    assert where.endswith("test_operations_that_wait_are_told_by_the_place_that_calls_them")


def test_rounds_stop_when_the_time_is_over(bench: Bench) -> None:
    clock = Clock(0.0)
    assert bench.seconds(lambda: None, clock, rounds=5) is None
    runs: list[int] = []
    assert bench.seconds(lambda: runs.append(1), Clock(60.0), rounds=5) is not None
    assert len(runs) == 6


def test_a_part_that_fails_or_has_no_time_costs_no_other(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_bench: Bench, _clock: Clock) -> str:
        raise ArithmeticError("of this part alone")

    parts = [
        Part("a", "A", 5, fail),
        Part("b", "B", 500, lambda _bench, _clock: "is not to be called"),
        Part("c", "C", 5, lambda _bench, clock: f"has {clock.seconds:.0f} s", forgets=True),
    ]
    text, failed = run(bench, parts, 100)
    assert failed
    assert "ArithmeticError: of this part alone" in text
    assert "### B\n\nLeft out: it may take 500 s, and 100 s are left." in text
    assert "### C\n\nhas 5 s" in text
    assert "### C\n\nhas 5 s" in capsys.readouterr().out


def test_all_parts_fit_into_the_time_of_the_command() -> None:
    assert sum(part.seconds for part in PARTS) <= command.TOTAL_SECONDS < 6 * 60


def test_without_a_gpu_the_command_says_how_to_try_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "finds no CUDA device here; try --device cpu --tiny" in capsys.readouterr().err


def test_the_page_gets_its_part(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    assert main(["--device", "cpu", "--tiny", "--only", "peaks-small", "--out", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Benchmarks\n\n<!-- part: gpu -->\n\n## (m) On a GPU")
    assert "pairs of 15 tokens that first differ at 9." in text


@pytest.mark.slow
def test_every_part_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """All but the tests within the tests, whatever the time that a busy machine takes for it."""
    names = [part.name for part in PARTS if part.name != "oracle"]
    code = main(["--device", "cpu", "--tiny", "--seconds", "100000", "--only", *names])
    said = capsys.readouterr().out
    assert code == 0, said
    for part in PARTS:
        assert (f"### {part.title}\n" in said) == (part.name in names)
    for found in ("| engine, 64 suffix tokens |", "| hooks, batches of 4 |", "| atp_star | 4 |", "| bfloat16 |"):
        assert found in said
    assert "Left out" not in said
