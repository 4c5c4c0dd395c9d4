"""Datasets that lie elsewhere: in an object store, on the Hub (a stand-in: no hub is reachable here)."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from attrib_batch.errors import DatasetError, RequestError, StorageError
from attrib_batch.pairs.making.writer import serialize_pairs
from attrib_batch.pairs.reading import files
from attrib_batch.pairs.reading.files import HubFile, find_file, resolve_path
from attrib_batch.pairs.reading.pinned import PinnedTable
from attrib_batch.pairs.reading.reader import PairTable
from tests.support.demo_pairs import random_pairs
from tests.support.faulty_proxy import FaultyProxy
from tests.support.jobs import in_words
from tests.support.object_store import ObjectStore

COMMIT, LATER = "ab" * 20, "cd" * 20
URL = "hf://datasets/someone/pairs"


def table_bytes(seed: int = 0, n_pairs: int = 12) -> bytes:
    return serialize_pairs(in_words(random_pairs(n_pairs, 9, 4, seed=seed)))


@pytest.fixture(scope="module")
def bucket(object_store_server: ObjectStore) -> str:
    return object_store_server.make_bucket("datasets")


def test_an_object_is_read_like_a_file(object_store: ObjectStore, bucket: str) -> None:
    data = table_bytes()
    object_store.put(f"{bucket}/p.parquet", data)
    table = PairTable.open(f"s3://{bucket}/p.parquet", limit=10)
    assert table.path == f"s3://{bucket}/p.parquet"
    table.check_ids()
    assert [pair.pair_id for pair in table.rows(3, 99)] == list(range(3, 10))
    assert table.fingerprint() == hashlib.sha256(data).hexdigest()  # a copy is the same dataset
    assert not table.is_local


def test_a_large_object_is_known_by_its_tag(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "HASHED_BYTES", 100)
    data = table_bytes()
    object_store.put(f"{bucket}/large.parquet", data)
    fingerprint = PairTable.open(f"s3://{bucket}/large.parquet").fingerprint()
    assert fingerprint == f"etag:{hashlib.md5(data).hexdigest()};size:{len(data)}"  # noqa: S324 - what S3 makes tags of


def test_an_object_that_is_replaced_is_noticed(object_store: ObjectStore, bucket: str) -> None:
    url = f"s3://{bucket}/replaced.parquet"
    object_store.put(f"{bucket}/replaced.parquet", table_bytes())
    pin = PairTable.open(url).pin()
    table = PinnedTable(url, None, pin)
    first = table.rows(0, 5)
    object_store.put(f"{bucket}/replaced.parquet", table_bytes(seed=1))
    with pytest.raises(DatasetError, match="has changed since the run began"):
        table.rows(5, 10)
    with pytest.raises(DatasetError, match="has changed since the run began"):
        PinnedTable(url, None, pin).rows(0, 5)
    object_store.put(f"{bucket}/replaced.parquet", table_bytes())
    assert table.rows(0, 5) == first


def test_objects_that_are_not_there(object_store: ObjectStore, bucket: str) -> None:
    for url in (f"s3://{bucket}/absent.parquet", "s3://absent-bucket/x.parquet"):
        with pytest.raises(DatasetError, match="no such object, or no such bucket"):
            PairTable.open(url)
    object_store.put(f"{bucket}/text.parquet", b"clean,corrupted\n" * 10)
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        PairTable.open(f"s3://{bucket}/text.parquet")


def test_no_answer_is_not_a_damaged_file(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attrib_batch.storage.objects.ATTEMPTS", 2)
    object_store.put(f"{bucket}/p.parquet", table_bytes())
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        table = PairTable.open(f"s3://{bucket}/p.parquet")
        proxy.answer(403, "HEAD", times=9)
        with pytest.raises(DatasetError, match="ACCESS_DENIED"):
            PairTable.open(f"s3://{bucket}/p.parquet")
        proxy.forget_faults()
        proxy.answer(500, "GET", times=99)
        with pytest.raises(StorageError, match="cannot read s3://"):
            table.rows(0, 3)


def test_an_answer_that_fails_and_is_longer_than_what_was_asked_for_is_asked_for_again(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow does not: the message does not fit where the content was to go."""
    monkeypatch.setattr("attrib_batch.storage.objects.SHORT_READ_PAUSES", (0.01,) * 4)
    data, url = table_bytes(), f"s3://{bucket}/persistent.parquet"
    object_store.put(f"{bucket}/persistent.parquet", data)
    expected = PairTable.open(url).rows(0, 12)
    with FaultyProxy(object_store.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

        def fail_twice() -> None:
            assert proxy.faults_left() == 0
            # The message repeats this header, which makes it about as long as that of a real store.
            proxy.answer(500, "GET", f"/{bucket}/persistent.parquet", times=2, echo="Authorization")

        table = PairTable.open(url)
        for read in (table.check_ids, lambda: table.rows(0, 12)):
            fail_twice()
            read()
        fail_twice()
        assert PairTable.open(url).rows(0, 12) == expected
        fail_twice()
        assert table.fingerprint() == hashlib.sha256(data).hexdigest()
        assert proxy.faults_left() == 0
        assert proxy.requests("GET") > 0


def test_local_paths_become_absolute_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("pairs.parquet") == str(tmp_path / "pairs.parquet")
    assert resolve_path("s3://b/pairs.parquet") == "s3://b/pairs.parquet"
    assert resolve_path("gs://b/x/") == "gs://b/x"
    with pytest.raises(DatasetError, match="read from local paths, s3://"):
        find_file("https://example.org/pairs.parquet")
    with pytest.raises(RequestError, match="environment"):
        find_file("s3://key:secret@b/pairs.parquet")


@pytest.mark.parametrize(
    ("text", "revision", "path"),
    [
        (f"{URL}/p.parquet", None, "p.parquet"),
        (f"{URL}@v1.0/data/p.parquet", "v1.0", "data/p.parquet"),
        (f"{URL}@refs/convert/parquet/p.parquet", "refs/convert/parquet", "p.parquet"),
        (f"{URL}@refs%2Fpr%2F1/p.parquet", "refs/pr/1", "p.parquet"),
    ],
)
def test_urls_of_the_hub(text: str, revision: str | None, path: str) -> None:
    file = HubFile.parse(text)
    assert (file.repo, file.revision, file.path) == ("someone/pairs", revision, path)
    assert HubFile.parse(str(file)) == file


@pytest.mark.parametrize(
    "text", ["hf://someone/pairs/p.parquet", "hf://datasets/pairs", "hf://datasets/a/b", "hf://datasets/a/b@v/"]
)
def test_urls_of_the_hub_that_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="hf://datasets/<owner>"):
        HubFile.parse(text)


class Hub:
    """A hub of one dataset: files of each commit in a folder, and the commit that ``main`` is at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.main = COMMIT
        self.lfs = True

    def dataset_info(self, repo: str, *, revision: str | None) -> SimpleNamespace:
        if repo != "someone/pairs" or revision not in {None, "main"}:
            raise OSError(f"404: {repo} has no {revision}")
        return SimpleNamespace(sha=self.main)

    def open(self, url: str, mode: str, *, block_size: int) -> object:
        assert (mode, block_size) == ("rb", 1 << 20)
        return io.BytesIO(self._path(url).read_bytes())

    def info(self, url: str) -> dict[str, object]:
        path = self._path(url)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"size": path.stat().st_size, "lfs": {"sha256": sha} if self.lfs else None}

    def _path(self, url: str) -> Path:
        file = HubFile.parse(url)
        assert file.revision is not None, "read without a commit"
        return self.folder / file.revision / file.path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    for seed, commit in enumerate((COMMIT, LATER)):
        (tmp_path / commit).mkdir()
        (tmp_path / commit / "p.parquet").write_bytes(table_bytes(seed))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: hub)
    return hub


@pytest.mark.parametrize("lfs", [True, False])
def test_a_file_of_the_hub_is_read_at_a_commit(hub: Hub, *, lfs: bool) -> None:
    hub.lfs = lfs
    url = resolve_path(f"{URL}/p.parquet")
    assert url == f"{URL}@{COMMIT}/p.parquet"
    table = PairTable.open(url)
    assert table.fingerprint() == hashlib.sha256(table_bytes()).hexdigest()
    before = PinnedTable(url, None, table.pin())
    hub.main = LATER
    assert len(before.rows(0, 12)) == 12  # the commit stays what it was


def test_a_commit_holds_for_the_whole_run(hub: Hub) -> None:
    first = resolve_path(f"{URL}/p.parquet")
    hub.main = LATER
    assert resolve_path(f"{URL}/p.parquet", first) == first
    assert resolve_path(f"{URL}@main/p.parquet", first) == f"{URL}@{LATER}/p.parquet"  # asked for by name
    assert resolve_path(f"{URL}@{COMMIT}/p.parquet", None) == first
    assert resolve_path(f"{URL}/p.parquet", "/data/p.parquet") == f"{URL}@{LATER}/p.parquet"


def test_what_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(DatasetError, match=r"404.*Check the name, the revision and HF_TOKEN"):
        resolve_path(f"{URL}@absent/p.parquet")
    with pytest.raises(DatasetError, match="cannot be read from the Hub"):
        PairTable.open(f"{URL}@{COMMIT}/absent.parquet")
