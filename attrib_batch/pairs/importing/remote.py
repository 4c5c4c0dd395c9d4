"""Files to import that lie elsewhere: in an object store, on the Hub, or behind a web address; read as streams."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from attrib_batch.errors import DatasetError
from attrib_batch.pairs.reading.columns import one_line
from attrib_batch.pairs.reading.files import find_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WEB = re.compile(r"^https?://")
_ELSEWHERE = re.compile(r"^(s3|gs|hf|https?)://")


@dataclass(frozen=True)
class RemotePath:
    """The part of a path that an import needs, of a file at a URL."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        """Return the URL; without the query of a web address, which may hold a secret."""
        return urlsplit(self.url)._replace(query="", fragment="").geturl() if _WEB.match(self.url) else self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def open(self, _mode: str = "rb") -> BinaryIO:
        """Open it for reading bytes, anywhere in it.

        Raises:
            DatasetError: it is not there, or cannot be had.
            StorageError: the store gives no answer.
        """
        if _WEB.match(self.url):
            raw = _Stream(_open_web(self), lambda: _translating_web_errors(self))
        else:
            raw = _Stream(find_file(self.url).open(), nullcontext)
        return cast("BinaryIO", io.BufferedReader(raw))


SourcePath = Path | RemotePath


def is_url(source: str | Path) -> bool:
    """Return whether a file that a person names lies elsewhere."""
    return _ELSEWHERE.match(str(source)) is not None


def source_path(source: str | Path) -> SourcePath:
    """Return the path that a person names: of the file system, or a URL.

    Raises:
        DatasetError: there is no file at a path of the file system.
    """
    if is_url(source):
        return RemotePath(str(source))
    path = Path(source)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file. Paths are relative to {Path.cwd()}.")
    return path


class _Stream(io.RawIOBase):
    """A stream of bytes that is read into buffers, as Python's own buffering asks."""

    def __init__(self, file: Any, translating: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._file = file
        self._translating = translating

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer; return how many."""
        with self._translating():
            data: bytes = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte, and return its position."""
        with self._translating():
            self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        """Return the position of the byte that is read next."""
        return int(self._file.tell())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether any part of it can be read: not every web server gives parts of a file."""
        return bool(self._file.seekable())

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def _open_web(path: RemotePath) -> Any:
    try:
        import aiohttp  # noqa: F401 - what fsspec reads them with
        import fsspec  # type: ignore[import-untyped]
    except ImportError as error:
        raise DatasetError(
            f"{path}: reading web addresses needs the packages fsspec and aiohttp (pip install aiohttp); or download "
            "the file and import that"
        ) from error
    with _translating_web_errors(path):
        return fsspec.filesystem(urlsplit(path.url).scheme).open(path.url, "rb")


@contextmanager
def _translating_web_errors(path: RemotePath) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file, or no such server.") from error
    except Exception as error:  # of whatever library reads it
        reason = f"{type(error).__name__}: {one_line(error)}".replace(path.url, str(path))
        raise DatasetError(f"{path} cannot be read ({reason}). Download it, and import that.") from error
