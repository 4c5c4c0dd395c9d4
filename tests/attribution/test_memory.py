"""How large micro-batches are made: what they take, as measured, against what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attrib_batch.attribution import memory
from attrib_batch.attribution.batches import Size, in_order, size_of, suffix_tokens
from attrib_batch.attribution.engine import ScoredBatch, TokenBudget, score_pairs
from attrib_batch.attribution.groups import group_methods
from attrib_batch.attribution.memory import (
    MemoryBudget,
    MemoryLimit,
    MemoryModel,
    budget_for,
    free_bytes,
    measure,
    pass_tokens,
    peak_bytes,
)
from attrib_batch.attribution.passes import Passes, passes_for
from tests.support.demo_pairs import random_pairs
from tests.support.scored import encoded, method, tiny_model

CPU = torch.device("cpu")


def test_peaks_are_counted_of_all_tensors_that_exist_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first, second
        torch.zeros(1500).add_(1).view(30, 50)

    assert peak_bytes(CPU, work) == 4 * 2000


def test_what_was_there_before_is_not_counted_and_neither_are_views_of_it() -> None:
    weight = torch.zeros(100, 1000)
    assert peak_bytes(CPU, lambda: torch.ones(1, 100) @ weight.t()[:, :].t()) == 4 * (100 + 1000)


def test_a_pair_that_takes_more_than_there_is_may_be_computed_at_its_own_size() -> None:
    (pair,) = encoded(random_pairs(1, 9, 4))
    limit = MemoryLimit(MemoryModel(1e9, 1e3, 1e3, 0.0), room=1e6, tokens=TokenBudget(4096), padded=False)
    assert not limit.fits(Size(1, 0, 0))
    assert limit.batch_tokens([pair]) == 2 * 5


@pytest.mark.parametrize("options", [{"id": "atp"}, {"id": "atp", "components": ["z", "mlp_out"]}, {"id": "atp_ig"}])
def test_what_a_micro_batch_takes_follows_from_two_small_ones(options: dict[str, object]) -> None:
    passes = passes_for(tiny_model("llama"))
    (group,) = group_methods([method(**options)])
    model = measure(passes, group)
    # More pairs than were measured, of other shapes.
    pairs = in_order(encoded(random_pairs(20, 9, 4) + random_pairs(10, 14, 2, seed=1)))

    def score() -> None:
        passes.begin(pairs)
        passes.prepare(pairs)
        group.score(passes, pairs, batch_tokens=suffix_tokens(pairs))

    assert peak_bytes(CPU, score) == pytest.approx(model.bytes_of(size_of(pairs, padded=False)), rel=0.1)


def test_micro_batches_take_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny_model("llama"), encoded(random_pairs(24, 9, 4))
    budget = MemoryBudget(CPU)
    (group,) = group_methods([method()])
    passes = passes_for(model)
    takes = budget.limit(passes, group).model
    monkeypatch.setattr(memory, "free_bytes", lambda *_, **__: takes.bytes_of(Size(100, 40, 0)) / memory.SHARE)
    sizes = [len(batch.pairs) for _, batch in score_pairs(model, pairs, [method()], budget)]
    assert len(sizes) > 2
    assert sum(sizes) == 24
    for start in range(len(sizes)):
        assert sizes[start] * 2 * 5 <= 100


def test_memory_that_runs_out_all_the_same_halves_micro_batches() -> None:
    budget = MemoryBudget(CPU)
    passes = passes_for(tiny_model("llama"))
    (group,) = group_methods([method()])
    batch = encoded(random_pairs(4, 9, 4))
    assert budget.ran_out_at(batch)
    assert not budget.limit(passes, group).fits(Size(suffix_tokens(batch) // 2 + 1, 0, 0))
    assert budget.limit(passes, group).fits(Size(suffix_tokens(batch) // 2, 0, 0))


def test_processes_that_share_a_model_take_the_largest_need_and_the_least_room() -> None:
    told: list[list[float]] = []

    def agreed(numbers: object) -> list[float]:
        told.append(list(numbers))  # type: ignore[call-overload]
        return [number + 1 for number in told[-1]]

    (group,) = group_methods([method()])
    limit = MemoryBudget(CPU, agreed=agreed).limit(passes_for(tiny_model("llama")), group)
    assert limit.model.suffix_token == told[0][1] + 1
    assert told[1][0] < 0, "room is told as its negative, so that the largest is the least"


def test_a_number_overrides_what_memory_allows() -> None:
    assert budget_for(64, CPU) == TokenBudget(64)
    assert budget_for(64, CPU, ran_out=2) == TokenBudget(16)
    assert isinstance(budget_for("auto", CPU), MemoryBudget)


def test_scores_in_micro_batches_by_memory_are_complete() -> None:
    pairs = encoded(random_pairs(6, 9, 4))
    for kind in ("atp", "exact"):
        outcomes = score_pairs(tiny_model("gpt2"), pairs, [method(id=kind)], MemoryBudget(CPU))
        assert sorted(pair.pair_id for _, batch in outcomes if isinstance(batch, ScoredBatch) for pair in batch.pairs)


def test_free_memory_is_what_the_machine_and_its_containers_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:   60 kB\n")
    assert memory._available(meminfo) == 60 * 1024
    assert memory._available(tmp_path / "none") is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("2000\n")
    (old / "memory.usage_in_bytes").write_text("900\n")
    (old / "memory.stat").write_text("total_inactive_file 100\n")
    assert memory._cgroup_room(tmp_path) == [450, 1200]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup_room(tmp_path) == [1200]
    assert 0 < free_bytes(CPU, share=0.5) < free_bytes(CPU, share=1.0)


def test_what_a_pass_costs_is_the_time_of_no_position_over_that_of_one_more() -> None:
    """By a clock that goes on by 3 seconds a pass and a thousandth a position."""
    model = tiny_model("llama")
    time = 0.0

    def forward(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal time
        time += 3.0 + 0.001 * args[0].numel()

    handle = model.module.register_forward_pre_hook(forward)
    try:
        assert pass_tokens(model, now=lambda: time) == pytest.approx(3000)
    finally:
        handle.remove()
    # No pass takes longer than another.
    assert pass_tokens(model, now=lambda: 0.0) == memory.MOST_TOKENS["cpu"]


def test_a_model_that_pads_is_told_what_a_pass_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "pass_tokens", lambda _model: 1234.4)
    (group,) = group_methods([method()])
    padded, packed = passes_for(tiny_model("gptj")), passes_for(tiny_model("llama"))
    assert padded.padded
    budget = MemoryBudget(CPU)
    for passes in (padded, packed):
        budget.halved(1).limit(passes, group)
    assert padded.pass_tokens == 1234
    assert packed.pass_tokens == Passes.pass_tokens
