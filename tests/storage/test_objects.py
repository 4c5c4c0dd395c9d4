"""Object stores, against a real server: whole objects or none, retries, clear refusals, no secrets."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from attrib_batch.errors import OutputError, RequestError, StorageError
from attrib_batch.storage import objects
from attrib_batch.storage.objects import ObjectUrl
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table, part_name
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.object_store import SECRET, ObjectStore

LARGE = 12 << 20
"""In several parts."""


@pytest.fixture(scope="module")
def bucket(object_store_server: ObjectStore) -> str:
    return object_store_server.make_bucket("objects")


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon; file systems are kept, but this proxy's are its own."""
    monkeypatch.setattr(objects, "ATTEMPTS", 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/c/d", "s3://b/c/d"),
        ("s3://b/c/d/", "s3://b/c/d"),
        ("s3:/b/c", "s3://b/c"),  # as pathlib leaves it
        ("gs://b", "gs://b"),
    ],
)
def test_urls(text: str, expected: str) -> None:
    store = Store.parse(text)
    assert str(store.root) == expected
    assert store.path("scores/x.parquet") == f"{expected}/scores/x.parquet"
    assert str(store.below("verification").root) == f"{expected}/verification"
    assert pickle.loads(pickle.dumps(store)) == store  # noqa: S301 - our own
    assert Store.parse(store) is store


def test_urls_that_are_refused() -> None:
    for text in ("s3://", "s3:///c", "s3://b/c//d", "s3://b/../c"):
        with pytest.raises(RequestError, match="s3://bucket/folder"):
            ObjectUrl.parse(text)
    for text in ("s3://key:hidden@b/c", "s3://b/c?secret_key=hidden"):
        with pytest.raises(RequestError, match="environment") as refused:
            ObjectUrl.parse(text)
        assert "hidden" not in str(refused.value)


def test_a_folder_is_still_a_folder(tmp_path: Path) -> None:
    assert Store.parse(str(tmp_path)) == Store(tmp_path) == Store.parse(tmp_path)
    assert Store.parse("~/x").root == Path.home() / "x"
    assert Store.parse("s3").root == Path("s3")


def test_objects_are_written_listed_read_and_removed(object_store: ObjectStore, bucket: str) -> None:
    store = Store.parse(f"s3://{bucket}/basic")
    assert not store.exists("manifest.json")
    assert store.list("scores", recursive=True) == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("manifest.json")
    store.write_bytes("manifest.json", b"{}")
    table = pa.table({"a": pa.array([1, 2, 3], pa.int64())})
    for start in (0, 4):
        store.write_table(f"scores/model=m/{part_name(start, start + 4)}", table)
    assert store.read_bytes("manifest.json") == b"{}" == object_store.get(f"{bucket}/basic/manifest.json")
    assert store.exists("scores")
    assert store.parts(Table.SCORES, "model=m") == {(0, 4), (4, 8)}
    [first, second] = store.list("scores", recursive=True)
    assert str(first) == f"s3://{bucket}/basic/scores/model=m/{part_name(0, 4)}"
    assert first.modified_ns > 0
    assert store.count_rows(second.relative) == 3
    assert store.read_table(second.relative, ["a"]) == table
    store.remove(first.relative)
    store.remove(first.relative)
    assert store.parts(Table.SCORES, "model=m") == {(4, 8)}


def test_what_others_left_is_no_part(object_store: ObjectStore, bucket: str) -> None:
    store = Store.parse(f"s3://{bucket}/left")
    folder = f"{bucket}/left/scores/model=m"
    object_store.put(f"{folder}/.tmp-1-{part_name(0, 4)}.partial", b"PAR1")
    object_store.put(f"{folder}/_tmp-{part_name(4, 8)}", b"PAR1")
    object_store.put(f"{folder}/", b"")  # a folder, as some tools make them
    assert store.parts(Table.SCORES, "model=m") == set()
    assert store.list("scores", recursive=True) == []


def test_a_stream_that_is_dropped_is_published_by_pyarrow(object_store: ObjectStore, bucket: str) -> None:
    """Why objects are put whole and in a thread of their own; when this fails, that may be simplified."""
    stream = objects.file_system(ObjectUrl("s3", bucket, "")).open_output_stream(f"{bucket}/dropped")
    stream.write(b"half of")
    del stream
    assert object_store.get(f"{bucket}/dropped") == b"half of"


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_put_is_one_object(proxy: FaultyProxy, object_store: ObjectStore, bucket: str, size: int) -> None:
    data = bytes(size)
    assert Store.parse(f"s3://{bucket}/put").write_bytes(f"{size}.bin", data) == size
    assert object_store.get(f"{bucket}/put/{size}.bin") == data
    assert proxy.requests("PUT") == (1 if size == 10 else 2)


@pytest.mark.parametrize(("size", "method"), [(10, "PUT"), (LARGE, "POST"), (LARGE, "PUT")])
def test_a_put_that_fails_publishes_nothing(
    proxy: FaultyProxy, bucket: str, size: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_attempts(monkeypatch)
    store, key = Store.parse(f"s3://{bucket}/failing"), f"{size}-{method}"
    proxy.answer(500, method, f"/{bucket}/failing/{key}", times=99)
    with pytest.raises(StorageError, match=f"cannot write s3://{bucket}/failing/{key}.* the same command") as failed:
        store.write_bytes(key, bytes(size))
    assert failed.value.exit_code == 1
    proxy.forget_faults()
    assert not store.exists(key)
    store.write_bytes(key, bytes(size))
    assert store.read_bytes(key) == bytes(size)


def test_a_last_part_that_fails_leaves_what_was_there(
    proxy: FaultyProxy, object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_attempts(monkeypatch)
    store = Store.parse(f"s3://{bucket}/part")
    store.write_bytes("x", b"before")
    take = proxy.take_fault
    monkeypatch.setattr(
        proxy,
        "take_fault",
        lambda method, path: Fault(method, path, status=500) if "partNumber=2" in path else take(method, path),
    )
    with pytest.raises(StorageError):
        store.write_bytes("x", bytes(LARGE))
    assert object_store.get(f"{bucket}/part/x") == b"before"


def test_a_large_file_is_put_part_by_part(
    proxy: FaultyProxy, object_store: ObjectStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"0123456789abcdef" * (3 * LARGE // 16)
    (tmp_path / "file").write_bytes(data)
    held = []
    take = proxy.take_fault

    def watch(method: str, path: str) -> Fault | None:
        if method == "PUT":
            held.append(pa.total_allocated_bytes() - before)
        return take(method, path)

    monkeypatch.setattr(proxy, "take_fault", watch)
    before = pa.total_allocated_bytes()
    objects.put_file(ObjectUrl("s3", bucket, "large/file"), tmp_path / "file")
    assert len(held) == 4
    assert max(held) < LARGE  # one part
    assert object_store.get(f"{bucket}/large/file") == data


@pytest.mark.parametrize("status", [500, 503])
def test_what_passes_is_tried_again(proxy: FaultyProxy, bucket: str, status: int) -> None:
    store = Store.parse(f"s3://{bucket}/passing-{status}")
    for method in ("PUT", "HEAD", "GET"):
        proxy.answer(status, method, times=2)
    store.write_bytes("x", b"data")
    assert store.read_bytes("x") == b"data"
    assert len(store.list("")) == 1
    assert proxy.faults_left() == 0


def test_an_answer_that_never_comes_is_asked_for_again(
    proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "REQUEST_SECONDS", 1.0)
    store = Store.parse(f"s3://{bucket}/hanging")
    for method in ("PUT", "HEAD"):
        proxy.drop("never", method)
    store.write_bytes("x", b"data")
    assert store.read_bytes("x") == b"data"
    assert proxy.faults_left() == 0


def test_refusals_are_the_requests_fault(proxy: FaultyProxy, bucket: str) -> None:
    with pytest.raises(OutputError, match=r"bucket does not exist.* Check the bucket's name") as refused:
        Store.parse("s3://no-such-bucket/x").write_bytes("y", b"")
    assert refused.value.exit_code == 2
    proxy.answer(403, "PUT", times=9)
    with pytest.raises(OutputError, match=r"ACCESS_DENIED.*credentials") as refused:
        Store.parse(f"s3://{bucket}/x").write_bytes("y", b"")
    assert refused.value.exit_code == 2
    assert proxy.faults_left() == 8  # nothing was gained by asking again


def test_an_interrupt_does_not_publish_half_an_object(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        threads.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store.parse(f"s3://{bucket}/interrupted").write_bytes("x", bytes(LARGE))
    monkeypatch.undo()
    [thread] = threads
    join(thread)
    assert object_store.get(f"{bucket}/interrupted/x") == bytes(LARGE)


def test_no_secret_is_kept_or_said(object_store: ObjectStore, bucket: str) -> None:
    store = Store.parse(f"s3://{bucket}/secret")
    store.write_bytes("x", b"data")
    assert SECRET.encode() not in pickle.dumps(store)
    with pytest.raises(OutputError) as refused:
        Store.parse("s3://no-such-bucket/x").write_bytes("y", b"")
    assert SECRET not in str(refused.value)


class Asked(dict[str, object]):
    """What a file system was asked for."""

    def __init__(self, **options: object) -> None:
        super().__init__(options)


def test_what_is_asked_of_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "GcsFileSystem", Asked)
    monkeypatch.setattr(fs, "S3FileSystem", Asked)
    monkeypatch.setattr(fs, "resolve_s3_region", lambda bucket: f"region-of-{bucket}")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    make = objects._file_system.__wrapped__
    google = make("gs", "b", None, single_put=False)
    assert google.keys() == {"retry_time_limit"}
    emulated = make("gs", "b", "127.0.0.1:9000", single_put=False)
    assert (emulated["endpoint_override"], emulated["scheme"], emulated["anonymous"]) == (
        "127.0.0.1:9000",
        "http",
        True,
    )
    amazon = make("s3", "b", None, single_put=False)
    assert amazon["region"] == "region-of-b"
    assert not {"access_key", "secret_key", "endpoint_override"} & amazon.keys()
    own = make("s3", "b", "http://127.0.0.1:9000/", single_put=True)
    assert (own["endpoint_override"], own["scheme"], own["region"]) == ("127.0.0.1:9000", "http", "us-east-1")
    assert own["allow_delayed_open"]
    monkeypatch.setenv("AWS_REGION", "here")
    assert make("s3", "b", "store.example", single_put=False)["scheme"] == "https"
    assert make("s3", "b", "store.example", single_put=False)["region"] == "here"


def test_the_endpoint_of_s3_alone_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all")
    assert objects.endpoint_of("s3") == "http://all"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert objects.endpoint_of("s3") == "http://s3"
