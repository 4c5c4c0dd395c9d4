"""A lease that cannot be given back: the run ends as it would have, and says so besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attrib_batch.errors import RequestError
from attrib_batch.execution.driver import run_stages
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.execution.ray.executor import RayExecutor
from attrib_batch.spec import load_spec
from attrib_batch.storage import lease as leases
from attrib_batch.storage.store import Store
from tests.support.jobs import TinyJob


class Notes:
    """What a user is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def update(self, tally: Any) -> None:
        pass

    def close(self, tally: Any) -> None:
        pass


@pytest.mark.parametrize("broken", ["read_bytes", "remove"])
def test_why_a_run_ended_is_not_hidden(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    job, notes = TinyJob.make(tmp_path / "job", n_pairs=4), Notes()
    opened = open_run(load_spec(job.write()), tmp_path / "out")
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 200)  # what ends the run
    method = getattr(Store, broken)

    def fails(store: Store, relative: str) -> object:
        if relative == leases.LEASE:
            raise RuntimeError("the store has gone mad")
        return method(store, relative)

    monkeypatch.setattr(Store, broken, fails)
    with pytest.raises(RequestError, match="RAY_TMPDIR is too long"):
        run_stages(opened, RayExecutor(), notes)
    [note] = [text for text in notes.said if "lease" in text]
    assert note.startswith("the lease could not be given back: the store has gone mad.")
    [log] = (tmp_path / "out/logs").iterdir()
    lines = {line["event"]: line for line in map(json.loads, log.read_text().splitlines())}
    assert (lines["lease_released"]["level"], lines["lease_released"]["message"]) == ("warning", note)
    assert lines["execution_ended"]["exit_code"] == 2
    assert "RAY_TMPDIR is too long" in lines["execution_ended"]["message"]
