"""One driver at a time on a run's directory, and no lease that outlives its driver for long; on disks and in stores."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from attrib_batch.errors import OutputError, RunInterruptedError, StorageError
from attrib_batch.storage import conditional
from attrib_batch.storage import lease as leases
from attrib_batch.storage.lease import EXPIRES_SECONDS, LEASE, Holder, Lease, read_holder
from attrib_batch.storage.store import Store
from tests.support.faulty_proxy import FaultyProxy
from tests.support.google_store import GOOGLE_BUCKET
from tests.support.lease_race import PROCESSES, race
from tests.support.object_store import SECRET, ObjectStore

BUCKET = "leases"


@pytest.fixture(scope="module", autouse=True)
def _bucket(object_store_server: ObjectStore) -> None:
    object_store_server.make_bucket(BUCKET)


@pytest.fixture
def s3(object_store: ObjectStore, request: pytest.FixtureRequest) -> str:
    """A folder of this test's own."""
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def gs(google_conditions: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_conditions)
    return f"gs://{GOOGLE_BUCKET}/{request.node.name}"


@pytest.fixture(params=["disk", "s3", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a run may lie."""
    return str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue(request.param)


@pytest.fixture
def store(root: str) -> Store:
    return Store.parse(root)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.2)


def leave(store: Store, holder: Holder) -> None:
    store.write_bytes(LEASE, json.dumps(asdict(holder)).encode())


def gone() -> Holder:
    """A driver of this machine whose process has ended: its number is above all that Linux gives."""
    return replace(Holder.here("theirs"), pid=2**22 + 1)


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
    leave(store, gone())
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


def wait_for_loss(lease: Lease) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            lease.check()
        except RunInterruptedError as error:
            assert "another driver has taken over" in str(error)  # noqa: PT017 - it takes a while
            return
        assert time.monotonic() < deadline, "the loss was not noticed"
        time.sleep(0.01)


def test_a_lease_is_renewed_and_its_loss_is_noticed(store: Store) -> None:
    lease = Lease.take(store)
    before = store.read_bytes(LEASE)
    deadline = time.monotonic() + 10
    while store.read_bytes(LEASE) == before:
        assert time.monotonic() < deadline, "it was not renewed"
        time.sleep(0.01)
    lease.check()
    leave(store, elsewhere(time.time()))
    wait_for_loss(lease)
    assert lease.release() is None
    assert store.exists(LEASE), "another one's lease was removed"


def test_a_renewal_that_is_held_up_does_not_write_over_a_successor(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, here = Lease.take(store), Holder.here
    theirs = elsewhere(time.time())

    def held_up(execution: str) -> Holder:
        if read_holder(store) != theirs:
            leave(store, theirs)
        return here(execution)

    monkeypatch.setattr(Holder, "here", held_up)  # asked for between the look at a lease and its renewal
    wait_for_loss(lease)
    assert read_holder(store) == theirs
    lease.release()


@pytest.mark.parametrize("left", [None, "gone", "torn"])
def test_a_driver_that_is_held_up_before_it_writes_is_refused(
    store: Store, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left == "gone":
        leave(store, gone())
    elif left == "torn":
        store.write_bytes(LEASE, b'{"execution": ')
    here, taken, calls = Holder.here, list[Lease](), 0

    def held_up(execution: str) -> Holder:
        nonlocal calls
        calls += 1
        if calls == (1 if left is None else 2):  # it has found what was left, and decided to take it over
            monkeypatch.setattr(Holder, "here", here)
            taken.append(Lease.take(store))
        return here(execution)

    monkeypatch.setattr(Holder, "here", held_up)
    with pytest.raises(OutputError, match="another driver runs"):
        Lease.take(store)
    [first] = taken
    first.check()
    first.release()


@pytest.mark.slow
def test_of_several_that_start_together_one_gets_it(root: str) -> None:
    stores = [Store.parse(f"{root}/{number}") for number in range(60 if root.startswith("/") else 9)]
    dead = gone()
    for store in stores[1::3]:  # one third are fresh
        leave(store, dead)
    for store in stores[2::3]:
        store.write_bytes(LEASE, b"{")
    for number, ended in enumerate(race(stores)):
        assert len(ended.winners) == 1, (number, ended)
        assert len(ended.refusals) == PROCESSES - 1
        assert all("another driver runs in " in text for text in ended.refusals), (number, ended)


def test_file_systems_without_hard_links(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    first = Lease.take(disk)
    with pytest.raises(OutputError, match="another driver runs"):
        Lease.take(disk)
    first.release()
    Lease.take(disk).release()
    assert [path for path in disk.path("").iterdir() if path.name.startswith(".tmp")] == []


def test_a_torn_lease_holds_nothing(store: Store) -> None:
    store.write_bytes(LEASE, b'{"execution": ')
    Lease.take(store).release()


def test_a_release_that_fails_is_told_and_raises_nothing(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.take(disk)

    def read(*_: object) -> None:
        raise ValueError("something that no store should raise")

    monkeypatch.setattr(Store, "read_bytes", read)
    assert "the lease could not be given back: something that no store" in str(lease.release())


def test_renewals_go_on_after_whatever_a_store_raises(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, write, failed = Lease.take(disk), Store.write_unless_changed, list[str]()

    def fails_twice(*arguments: object) -> object:
        if len(failed) < 2:
            failed.append("once more")
            raise RuntimeError("something that no store should raise")
        return write(*arguments)  # type: ignore[arg-type]  # passed on

    before = read_holder(disk)
    monkeypatch.setattr(Store, "write_unless_changed", fails_twice)
    deadline = time.monotonic() + 10
    while read_holder(disk) == before:
        assert time.monotonic() < deadline, "it was not renewed"
        time.sleep(0.01)
    assert len(failed) == 2
    lease.release()


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.parametrize("fault", [500, 503, "before", "after", "never"])
def test_an_answer_that_is_lost_is_no_other_driver(
    proxy: FaultyProxy, s3: str, fault: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "REQUEST_SECONDS", 1.0)
    if isinstance(fault, int):
        proxy.answer(fault, "PUT")
    else:
        proxy.drop(fault, "PUT")  # type: ignore[arg-type]  # one of those
    lease = Lease.take(Store.parse(s3))
    assert proxy.faults_left() == 0
    lease.check()
    assert lease.release() is None


def test_an_answer_that_google_lost_is_no_other_driver(gs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(os.environ["STORAGE_EMULATOR_HOST"]) as proxy, monkeypatch.context() as patched:
        patched.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        proxy.answer(503, "POST")
        proxy.drop("after", "POST")
        lease = Lease.take(Store.parse(gs))
        assert proxy.faults_left() == 0
        lease.check()
        proxy.answer(403, "POST", times=9)
        with pytest.raises(OutputError, match=r"cannot write gs://.*: 403 Forbidden.* Check the bucket's name") as said:
            Lease.take(Store.parse(gs))
        assert said.value.exit_code == 2
        proxy.forget_faults()
    assert lease.release() is None


def test_a_store_that_gives_no_answer_is_not_the_requests_fault(
    proxy: FaultyProxy, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "ATTEMPTS", 2)
    proxy.answer(500, "PUT", times=9)
    with pytest.raises(StorageError, match=r"cannot write s3://.*/lease\.json: .*the same command") as said:
        Lease.take(Store.parse(s3))
    assert said.value.exit_code == 1


def test_a_store_without_conditional_writes_is_refused(
    proxy: FaultyProxy, s3: str, google_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.answer(501, "PUT", times=9)
    with pytest.raises(OutputError, match="this object store has no conditional writes") as refused:
        Lease.take(Store.parse(s3))
    assert refused.value.exit_code == 2
    # The emulator by itself takes no notice of conditions.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{google_store}")
    with pytest.raises(OutputError, match="this object store has no conditional writes"):
        Lease.take(Store.parse(f"gs://{GOOGLE_BUCKET}/without"))
    assert not Store.parse(f"gs://{GOOGLE_BUCKET}/without").exists(LEASE)


@pytest.fixture
def _new_clients() -> Iterator[None]:
    """Clients are kept, with the credentials that they found."""
    conditional._amazon.cache_clear()
    yield
    conditional._amazon.cache_clear()


@pytest.mark.usefixtures("_new_clients")
def test_credentials_come_from_a_profile_too(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with pytest.raises(OutputError, match=r"profile \(mine\) could not be found") as refused:
        Lease.take(Store.parse(s3))
    assert refused.value.exit_code == 2
    (tmp_path / "credentials").write_text(f"[mine]\naws_access_key_id = x\naws_secret_access_key = {SECRET}\n")
    Lease.take(Store.parse(s3)).release()
