"""Imports of files that lie elsewhere: the same pairs as those of a file here."""

from __future__ import annotations

import gzip
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.importing.importer import import_pairs
from attrib_batch.pairs.importing.remote import RemotePath, source_path
from attrib_batch.pairs.reading.reader import Pair, PairTable
from tests.pairs.importing.files_of import FILES, pairs_of
from tests.support.http_answers import served_by
from tests.support.object_store import ObjectStore

NAME = "agreement.csv"


def pairs_at(url: str, folder: Path) -> list[Pair]:
    target = folder / "remote.parquet"
    imported = import_pairs(url, target)
    return PairTable.open(target).rows(0, imported.n_pairs)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder with the file as it is, compressed in two ways, and as Parquet."""
    folder = tmp_path / "served"
    folder.mkdir()
    data = (FILES / NAME).read_bytes()
    (folder / NAME).write_bytes(data)
    (folder / f"{NAME}.gz").write_bytes(gzip.compress(data))
    with pa.CompressedOutputStream(str(folder / f"{NAME}.zst"), "zstd") as stream:
        stream.write(data)
    pq.write_table(pyarrow.csv.read_csv(FILES / NAME), folder / "agreement.parquet")
    return folder


class Ranges(SimpleHTTPRequestHandler):
    """Serves a folder, and ranges of its files as web servers do."""

    def send_head(self):  # type: ignore[no-untyped-def]  # as the base class has it
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            return super().send_head()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        size = path.stat().st_size
        end = min(int(last or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{end}/{size}")
        self.send_header("Content-Length", str(end + 1 - int(first)))
        self.end_headers()
        file = path.open("rb")
        file.seek(int(first))
        self.wfile.write(file.read(end + 1 - int(first)))
        file.close()
        return None

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.mark.slow
def test_files_behind_a_web_address(served: Path, tmp_path: Path) -> None:
    expected, _ = pairs_of(FILES / NAME, tmp_path)
    with served_by(partial(Ranges, directory=str(served))) as address:
        for name in (NAME, f"{NAME}.gz", f"{NAME}.zst", "agreement.parquet"):
            assert pairs_at(f"{address}/{name}", tmp_path) == expected
        with pytest.raises(DatasetError, match="no such file, or no such server"):
            pairs_at(f"{address}/absent.csv", tmp_path)
    with pytest.raises(DatasetError, match="no such file, or no such server") as raised:
        pairs_at(f"{address}/{NAME}?signature=secret", tmp_path)
    assert "secret" not in str(raised.value)


@pytest.mark.slow
def test_objects(object_store: ObjectStore, served: Path, tmp_path: Path) -> None:
    expected, _ = pairs_of(FILES / NAME, tmp_path)
    bucket = object_store.make_bucket("imports")
    for file in served.iterdir():
        object_store.put(f"{bucket}/{file.name}", file.read_bytes())
        assert pairs_at(f"s3://{bucket}/{file.name}", tmp_path) == expected
    with pytest.raises(DatasetError, match="no such object"):
        pairs_at(f"s3://{bucket}/absent.csv", tmp_path)


def test_what_is_a_url() -> None:
    found = source_path("https://example.org/data/some%20file.csv.gz?token=secret")
    assert isinstance(found, RemotePath)
    assert (found.name, found.suffix) == ("some file.csv.gz", ".gz")
    assert str(found) == "https://example.org/data/some%20file.csv.gz"
    assert "secret" not in repr(found)
    assert isinstance(source_path("s3://bucket/a.csv"), RemotePath)
    assert isinstance(source_path(FILES / NAME), Path)
    with pytest.raises(DatasetError, match="no such file"):
        source_path("ftp://example.org/a.csv")
