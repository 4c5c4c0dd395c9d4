"""The benchmarks' own arithmetic, on cases worked out by hand; what they measure is no matter for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.commands import Event
from benchmarks.page import replace_part
from benchmarks.second_worker import steady_speed


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
