"""An object of a store as a stream that pyarrow reads from, and whose reads raise errors of ours."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

from attrib_batch.storage.objects import file_system, retrying_short_reads, translating_errors

if TYPE_CHECKING:
    from attrib_batch.storage.objects import ObjectUrl

BLOCK_BYTES = 1 << 20


class ObjectReader(io.RawIOBase):
    """An object as a file that is read anywhere, with :func:`retrying_short_reads`."""

    def __init__(self, url: ObjectUrl) -> None:
        """Open an object.

        Raises:
            FileNotFoundError: it is not there.
            OutputError: the store refuses.
            StorageError: it gives no answer.
        """
        super().__init__()
        self._url = url
        with translating_errors("read", url):
            self._file = file_system(url).open_input_file(url.path)
            self._size: int = self._file.size()
        self._position = 0

    def read(self, size: int | None = -1) -> bytes:
        """Read the next ``size`` bytes, or all that are left; raises what opening raises."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)

        def read() -> bytes:
            with translating_errors("read", self._url):
                data: bytes = self._file.read_at(wanted, self._position)
                return data

        data = retrying_short_reads(read) if wanted else b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte, and return its position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the byte that is read next."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def metadata(self) -> dict[str, str]:
        """Return the metadata that the store has of it, by names in lower case."""
        with translating_errors("read", self._url):
            return {name.lower(): value.decode() for name, value in (self._file.metadata() or {}).items()}

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def sha256_of(stream: io.RawIOBase) -> str:
    """Return the SHA-256 of what is left of a stream, in hexadecimal."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
