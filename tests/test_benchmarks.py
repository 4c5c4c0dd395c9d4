"""The benchmarks' own arithmetic, on cases worked out by hand; what they measure is no matter for tests."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import benchmarks
from attrib_batch.tables import Table
from benchmarks.commands import Event
from benchmarks.page import replace_part
from benchmarks.rounds import Timings
from benchmarks.second_worker import steady_speed
from benchmarks.writing import ONE, TWO, Writing, render


def commits(worker: int, *times: float) -> list[Event]:
    return [Event(at, "task_committed", worker, 10) for at in times]


def test_two_workers_in_step_are_twice_as_fast_as_one() -> None:
    one = commits(0, 12.0, 17.0, 22.0, 27.0)
    two = [*one, *commits(1, 12.1, 17.1, 22.1, 27.1)]
    started = [Event(0.0, "worker_ready", worker, 0) for worker in (0, 1)]
    assert steady_speed([started[0], *one]) == pytest.approx(2.0)  # 30 pairs in 15 s
    assert steady_speed([*started, *sorted(two, key=lambda event: event.at)]) == pytest.approx(4.0)


def test_a_part_of_the_page_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    replace_part(page, "scale", "## Old\n")
    replace_part(page, "engine", "## Engine\n\n| a | b |\n")
    replace_part(page, "scale", "## New\n")
    assert page.read_text() == (
        "# Benchmarks\n\n<!-- part: engine -->\n\n## Engine\n\n| a | b |\n\n<!-- part: scale -->\n\n## New\n"
    )


def test_what_two_threads_bring_is_told_apart_from_what_the_machine_did() -> None:
    sizes = {Table.SCORES: 12_000_000, Table.PROMPTS: 60_000}
    by_clock = Timings({ONE: [1.0, 2.0, 1.0], TWO: [1.0, 1.0, 1.0]})
    found = Writing(
        1024, 6_000_000, sizes, by_clock, {ONE: [0.5] * 3, TWO: [0.5] * 3}, {ONE: [0.5] * 3, TWO: [0.25] * 3}
    )
    text = " ".join(render(".", found, 7.5, {256: (0.047, 0.129, 0.002)}).split())
    assert "| one thread | 6.0 | 6.0 | 12.0 |" in text
    assert "**2.00** times as fast as one where each has a processor to itself" in text
    assert "By the clock, on a machine of this load, 1.00 (1.00 to 2.00)" in text
    assert "2.00 bytes a row of scores. The other tables of the chunk: prompts 0.5%" in text
    assert "| 256 | 4.7% | 12.9% | 0.20% | **4.9%** |" in text


@pytest.mark.parametrize(
    "name",
    [
        module.name
        for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
        if not module.name.endswith("__main__")
    ],
)
def test_every_module_finds_what_it_imports(name: str) -> None:
    importlib.import_module(name)
