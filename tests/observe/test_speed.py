"""The time left, from the speeds of models that differ."""

from __future__ import annotations

import pytest

from attrib_batch.observe.speed import Speeds


def test_nothing_is_told_before_any_speed_is_known() -> None:
    speeds = Speeds({}, frozenset({"a"}))
    assert speeds.now is None
    assert speeds.seconds_left({"a": 10}) is None


def test_models_one_after_the_other_need_the_time_of_each() -> None:
    speeds = Speeds({"slow": 2.0, "fast": 10.0}, frozenset({"fast"}))
    assert speeds.now == 10.0
    assert speeds.seconds_left({"slow": 0, "fast": 50}) == pytest.approx(5.0)
    # 0.3 s a pair is the mean of 0.5 and 0.1.
    assert speeds.seconds_left({"slow": 0, "fast": 50, "unknown": 40}) == pytest.approx(5.0 + 12.0)


def test_models_side_by_side_need_the_time_of_the_longest() -> None:
    speeds = Speeds({"slow": 2.0, "fast": 10.0}, frozenset({"slow", "fast", "new"}))
    assert speeds.now == 12.0
    assert speeds.seconds_left({"slow": 20, "fast": 50}) == pytest.approx(10.0)
    assert speeds.seconds_left({"slow": 20, "fast": 50, "new": 100}) == pytest.approx(30.0)
    assert speeds.seconds_left({"slow": 20, "fast": 50, "later": 10}) == pytest.approx(13.0)
