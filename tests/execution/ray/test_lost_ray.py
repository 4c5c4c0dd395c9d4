"""A run whose own Ray, started on this machine, loses a part that it cannot do without."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from attrib_batch.execution.ray.head import RAY_PATIENCE
from tests.support.faulty_runs import CHUNK, N_PAIRS, Runs, assert_same_tables, committed

pytestmark = pytest.mark.slow

SETTINGS = {RAY_PATIENCE: "20", "RAY_health_check_period_ms": "500"}
"""Ray takes a third of its usual time to see that a part of it is gone."""
SLOW = 1.0
"""Seconds a batch takes, so that the run is not over before that."""


@pytest.mark.timeout(600)  # three runs
def test_a_run_that_loses_a_part_of_ray_ends_and_is_resumed(
    runs: Runs, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    out = runs.job.folder / "without-ray"
    before = 0
    for part, complaint in (
        ("gcs_server", "the head of the Ray cluster at 127.0.0.1:"),
        ("raylet", "the Ray node that this driver belongs to is gone"),
    ):
        with runs.started(out, slow=SLOW, more_than=before, own_ray=True) as driver:
            [process] = (child for child in psutil.Process(driver.pid).children(recursive=True) if child.name() == part)
            process.kill()
            said, _ = driver.communicate(timeout=90)
        assert driver.returncode == 1, said
        assert complaint in said
        assert "the same command goes on from there" in said
        assert "Traceback" not in said
        assert not (out / "lease.json").exists()
        assert before < len(committed(out)) < N_PAIRS // CHUNK
        before = len(committed(out))
    ended = runs.run(out, "--local")
    assert ended.code == 0, ended.said
    assert_same_tables(out, undisturbed)
