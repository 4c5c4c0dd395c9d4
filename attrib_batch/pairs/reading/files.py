"""Where a table of pairs lies: on a file system, in an object store, or on the Hugging Face Hub.

A dataset is known by its content (SHA-256) wherever it lies, so that a copy is the same dataset. Two exceptions spare
a download: a Hub file's SHA-256 is in its metadata, and an object above ``HASHED_BYTES`` is known by its entity tag and
size. Workers compare what is cheap: a local file is hashed again only when it looks touched, an object by its entity
tag and size, and a file at a commit of the Hub cannot change.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

from attrib_batch.errors import DatasetError, OutputError, StorageError
from attrib_batch.storage.hub import HubReader, translating_hub_errors
from attrib_batch.storage.objects import ObjectUrl, is_object_url, translating_errors
from attrib_batch.storage.streams import BLOCK_BYTES, ObjectReader, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

HASHED_BYTES = 1 << 30
_HUB_URL = re.compile(
    r"^hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?/(?P<path>[^@]+)$"
)
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


class PairFile(Protocol):
    """One file, as a reader needs it."""

    def open(self) -> Any:
        """Return what pyarrow reads it from: a path or a stream.

        Raises:
            DatasetError: there is no such file, or it cannot be read.
        """

    def fingerprint(self) -> str:
        """Return a hash of its content, or what else identifies it."""

    def pin(self) -> str:
        """Return what workers compare: the fingerprint, or what is cheaper and changes whenever the content does."""

    def stamp(self) -> object:
        """Return what changes when it is written or replaced; None where it is gone."""


def find_file(path: str | Path) -> PairFile:
    """Return the file that a job names.

    Raises:
        DatasetError: it is a URL of no known form.
    """
    text = str(path)
    if text.startswith("hf://"):
        return HubFile.parse(text)
    if is_object_url(text):
        return ObjectFile(ObjectUrl.parse(text))
    if re.match(r"^\w+://", text):
        raise DatasetError(f"{text}: datasets are read from local paths, s3://, gs:// and hf://datasets/")
    return LocalFile(Path(path))


def resolve_path(path: str, before: str | None = None) -> str:
    """Return a dataset's path that holds in any folder and at any time: absolute, or pinned to a commit of the Hub.

    Args:
        path: as the job states it.
        before: what an earlier execution of the same run resolved it to; its commit holds as long as no other is asked
            for.

    Raises:
        DatasetError: a dataset of the Hub cannot be found.
        StorageError: the Hub gives no answer.
    """
    file = find_file(path)
    if isinstance(file, HubFile):
        return str(file.pinned(HubFile.parse(before) if before and before.startswith("hf://") else None))
    return str(file.path.expanduser().resolve()) if isinstance(file, LocalFile) else str(file)


def is_local(path: str) -> bool:
    """Return whether a dataset's path leads to a file system, and not to an object store or the Hub."""
    return isinstance(find_file(path), LocalFile)


@dataclass(frozen=True)
class LocalFile:
    """A file that every worker sees under the same path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> Path:
        """Return the path, after a check that a file is there."""
        if not self.path.exists():
            raise DatasetError(
                f"{self.path}: no such file. Paths are relative to the folder the command runs in ({Path.cwd()})."
            )
        if not self.path.is_file():
            raise DatasetError(f"{self.path} is not a file; name one Parquet file of prompt pairs.")
        return self.path

    def fingerprint(self) -> str:
        """Return the SHA-256 of its bytes, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def pin(self) -> str:
        """Return the fingerprint."""
        return self.fingerprint()

    def stamp(self) -> tuple[int, int, int] | None:
        """Return inode, size and time of change."""
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class ObjectFile:
    """An object in a store."""

    url: ObjectUrl

    def __str__(self) -> str:
        return str(self.url)

    def open(self) -> ObjectReader:
        """Return a stream that reads any range, and asks again for what did not come."""
        try:
            with _reading(self.url):
                return ObjectReader(self.url)
        except FileNotFoundError as error:
            raise DatasetError(f"{self.url}: no such object, or no such bucket.") from error

    def fingerprint(self) -> str:
        """Return the SHA-256 of its bytes in hexadecimal; of a large object its entity tag and size.

        Raises:
            DatasetError: it is replaced while it is read.
        """
        before = self.pin()
        with self.open() as stream, _reading(self.url):
            if stream.size > HASHED_BYTES:
                return before
            digest = sha256_of(stream)
        if self.pin() != before:
            raise DatasetError(f"{self.url} was replaced while it was read; run the command again when it is complete.")
        return digest

    def pin(self) -> str:
        """Return its entity tag and size."""
        with self.open() as stream, _reading(self.url):
            metadata = stream.metadata()
            tag = metadata.get("etag") or metadata.get("generation") or metadata.get("last-modified", "")
            tag = tag.strip('"')
            return f"etag:{tag};size:{stream.size}"

    def stamp(self) -> str | None:
        """Return the pin."""
        try:
            return self.pin()
        except DatasetError:
            return None


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset repository: ``hf://datasets/<owner>/<name>[@revision]/<path>``."""

    repo: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, text: str) -> HubFile:
        """Read a URL.

        Raises:
            DatasetError: it is of another form.
        """
        match = _HUB_URL.match(text)
        if match is None:
            raise DatasetError(f"{text}: write hf://datasets/<owner>/<name>[@revision]/<path of a Parquet file>")
        revision = match["revision"]
        return cls(match["repo"], unquote(revision) if revision else None, match["path"])

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://datasets/{self.repo}{revision}/{self.path}"

    def pinned(self, before: HubFile | None = None) -> HubFile:
        """Return the same file at the commit that its revision names now, or that ``before`` names."""
        if self.revision is not None and _COMMIT.match(self.revision):
            return self
        if before is not None and self.revision is None and replace(before, revision=None) == self:
            return before
        with translating_hub_errors(self):
            import huggingface_hub

            commit = huggingface_hub.HfApi().dataset_info(self.repo, revision=self.revision).sha
        return replace(self, revision=commit)

    def open(self) -> HubReader:
        """Return a stream that reads any range."""
        with translating_hub_errors(self):
            import huggingface_hub

            return HubReader(self, huggingface_hub.HfFileSystem().open(str(self), "rb", block_size=BLOCK_BYTES))

    def fingerprint(self) -> str:
        """Return the SHA-256 of its bytes, from the Hub's metadata where it has it."""
        with translating_hub_errors(self):
            import huggingface_hub

            known = huggingface_hub.HfFileSystem().info(str(self)).get("lfs") or {}
            if known.get("sha256"):
                return str(known["sha256"])
        with self.open() as stream:
            return sha256_of(stream)

    def pin(self) -> str:
        """Return the URL, which holds the commit."""
        return str(self)

    def stamp(self) -> str:
        """Return the URL, which holds the commit."""
        return str(self)


@contextmanager
def _reading(url: ObjectUrl) -> Iterator[None]:
    """Raise DatasetError where a store refuses, and StorageError where it gives no answer."""
    try:
        with translating_errors("read", url):
            yield
    except StorageError:
        raise
    except OutputError as error:
        raise DatasetError(str(error)) from error
