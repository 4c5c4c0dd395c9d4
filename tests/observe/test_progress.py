"""What a person is shown of a run: one line, a bar, or nothing."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from attrib_batch.observe import progress
from attrib_batch.observe.progress import (
    LINE_SECONDS,
    LiveProgress,
    NoProgress,
    PlainProgress,
    Snapshot,
    describe,
    duration,
    make_progress,
)


def snapshot(done: int = 1200, total: int = 5000, **changes: object) -> Snapshot:
    facts = {"stage": "scoring", "failed": 0, "pairs_per_second": None, "seconds_left": None, **changes}
    return Snapshot(done=done, total=total, **facts)  # type: ignore[arg-type]


def console(*, terminal: bool = False, width: int = 200) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=terminal, width=width, legacy_windows=False), written


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "1,200 of 5,000 pairs"),
        ({"failed": 1000}, "1,200 of 5,000 pairs, 1,000 failed"),
        ({"pairs_per_second": 3.14159}, "1,200 of 5,000 pairs, 3.1 pairs/s"),
        ({"pairs_per_second": 0.0}, "1,200 of 5,000 pairs"),
        ({"seconds_left": 125.0}, "1,200 of 5,000 pairs, 2 min 5 s left"),
        ({"seconds_left": 0.0}, "1,200 of 5,000 pairs, 0 s left"),
        ({"done": 5000, "seconds_left": 125.0}, "5,000 of 5,000 pairs"),
        ({"elsewhere": "2 jobs queued"}, "1,200 of 5,000 pairs, 2 jobs queued"),
        (
            {"failed": 2, "pairs_per_second": 12.0, "seconds_left": 7300.0, "elsewhere": "1 job running"},
            "1,200 of 5,000 pairs, 2 failed, 12.0 pairs/s, 2 h 1 min left, 1 job running",
        ),
    ],
)
def test_one_line_says_all_that_is_known(changes: dict[str, object], line: str) -> None:
    assert describe(snapshot(**changes)) == line  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.integers(0, 10**7))
def test_a_duration_is_right_to_its_last_unit(seconds: int) -> None:
    words = duration(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600}
    shown = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert 0 <= seconds - shown < units[words[-1]]


def test_plain_lines_come_no_more_often_than_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out, written = console()
    view = PlainProgress(out)
    for done in range(30):
        view.update(snapshot(done=done))
        now += LINE_SECONDS / 10
    assert written.getvalue().splitlines() == [f"{done} of 5,000 pairs" for done in (0, 10, 20)]
    view.close(snapshot(done=30))
    assert written.getvalue().splitlines()[-1] == "30 of 5,000 pairs", "the last line comes whatever the time"


@pytest.mark.parametrize("live", [False, True])
def test_messages_are_shown_as_they_are(live: bool) -> None:
    """Neither as markup nor wrapped, so that a path or a list in them can be copied."""
    message = "[red]x[/red] /a/folder with [1, 2] " + "long " * 40
    out, written = console(terminal=live, width=40)
    view = LiveProgress(out) if live else PlainProgress(out)
    view.note(message)
    view.close(snapshot())
    assert message in written.getvalue()


def test_a_bar_shows_stage_counts_and_detail() -> None:
    out, written = console(terminal=True)
    view = LiveProgress(out)
    view.update(snapshot(done=0))
    view.update(snapshot(done=10, failed=3, pairs_per_second=2.5, stage="verification"))
    view.close(snapshot(done=5000, failed=3, pairs_per_second=4.5, stage="verification"))
    first, last = written.getvalue().split("\r")[0], written.getvalue().rpartition("\r")[2]
    assert "starting workers" in first
    for part in ("verification", "5000/5000", "3 failed, 4.5 pairs/s"):
        assert part in last
    before = written.getvalue()
    view.close(snapshot(done=5000))
    assert written.getvalue().count("\n") == before.count("\n"), "a bar that has stopped draws no line more"


def test_no_progress_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    view = NoProgress()
    view.note("a message")
    view.update(snapshot())
    view.close(snapshot())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("terminal", "kind"), [(True, LiveProgress), (False, PlainProgress)])
def test_the_view_suits_where_the_output_goes(terminal: bool, kind: type) -> None:
    view = make_progress(console(terminal=terminal)[0])
    assert type(view) is kind
    view.close(snapshot())
