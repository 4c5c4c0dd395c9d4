"""One driver at a time on a run's directory, and no lease that outlives its driver for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from attrib_batch.errors import OutputError, RunInterruptedError
from attrib_batch.run import lease as leases
from attrib_batch.run.lease import EXPIRES_SECONDS, LEASE, Holder, Lease
from attrib_batch.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.1)


def leave(store: Store, holder: Holder) -> None:
    store.write_bytes(LEASE, json.dumps(asdict(holder)).encode())


def elsewhere(renewed_at: float) -> Holder:
    return replace(Holder.here("theirs"), host="elsewhere", renewed_at=renewed_at)


def test_the_second_is_refused_until_the_first_is_done(store: Store) -> None:
    first = Lease.take(store)
    with pytest.raises(OutputError, match=rf"another driver runs in .*: process {os.getpid()} on "):
        Lease.take(store)
    first.check()
    first.release()
    assert not store.exists(LEASE)
    Lease.take(store).release()


def test_a_process_that_is_gone_holds_nothing(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    leave(store, replace(Holder.here("theirs"), pid=gone.pid))
    Lease.take(store).release()
    # Its number was given to another process.
    leave(store, replace(Holder.here("theirs"), process_started="1"))
    Lease.take(store).release()


def test_a_holder_elsewhere_is_believed_for_a_minute(store: Store) -> None:
    leave(store, elsewhere(time.time() - EXPIRES_SECONDS / 2))
    with pytest.raises(OutputError, match=r"on elsewhere, last heard of 30 s ago"):
        Lease.take(store)
    leave(store, elsewhere(time.time() - EXPIRES_SECONDS - 1))
    Lease.take(store).release()


@pytest.mark.parametrize("skew", [-1000.0, 1000.0])
def test_a_holder_elsewhere_whose_clock_is_wrong_is_seen_to_renew(
    store: Store, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, elsewhere(time.time() + skew))
    monkeypatch.setattr(time, "sleep", lambda _: leave(store, elsewhere(time.time() + skew)))
    with pytest.raises(OutputError, match="another driver runs"):
        Lease.take(store)


def test_a_lease_is_renewed_and_its_loss_is_noticed(store: Store) -> None:
    lease = Lease.take(store)
    before = store.path(LEASE).read_bytes()
    deadline = time.monotonic() + 5
    while store.path(LEASE).read_bytes() == before:
        assert time.monotonic() < deadline, "it was not renewed"
        time.sleep(0.01)
    lease.check()
    # Written until it stays: a renewal under way may come after it once.
    while True:
        leave(store, elsewhere(time.time()))
        time.sleep(0.2)
        try:
            lease.check()
        except RunInterruptedError as error:
            assert "another driver has taken over" in str(error)  # noqa: PT017 - it may take two rounds
            break
        assert time.monotonic() < deadline, "the loss was not noticed"
    lease.release()
    assert store.exists(LEASE), "another one's lease was removed"


def test_of_two_in_the_same_moment_one_gets_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: leave(store, elsewhere(time.time())))
    with pytest.raises(OutputError, match="another driver runs"):
        Lease.take(store)


def test_a_torn_lease_holds_nothing(store: Store) -> None:
    store.write_bytes(LEASE, b'{"execution": ')
    Lease.take(store).release()
