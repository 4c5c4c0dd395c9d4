"""Files of object stores and of the Hub as streams that pyarrow reads from, and whose reads raise errors of ours."""

from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError, StorageError
from attrib_batch.storage.hub_errors import hub_file_errors, is_no_answer
from attrib_batch.storage.objects import complaining, file_system, persistently

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.storage.objects import ObjectUrl

BLOCK_BYTES = 1 << 20


class ObjectReader(io.RawIOBase):
    """An object as a file that is read anywhere, each read made again where :func:`persistently` does."""

    def __init__(self, url: ObjectUrl) -> None:
        """Open it.

        Raises:
            FileNotFoundError: it is not there.
            OutputError: the store refuses.
            StorageError: it gives no answer.
        """
        super().__init__()
        self._url = url
        with complaining("read", url):
            self._file = file_system(url).open_input_file(url.path)
            self._size: int = self._file.size()
        self._position = 0

    def read(self, size: int | None = -1) -> bytes:
        """The next ``size`` bytes, or all that are left; raises what opening raises."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)

        def read() -> bytes:
            with complaining("read", self._url):
                data: bytes = self._file.read_at(wanted, self._position)
                return data

        data = persistently(read) if wanted else b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._size

    def metadata(self) -> dict[str, str]:
        """What the store says of it, by names in lower case."""
        with complaining("read", self._url):
            return {name.lower(): value.decode() for name, value in (self._file.metadata() or {}).items()}

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            self._file.close()
        super().close()


class HubReader(io.RawIOBase):
    """A file of the Hub, whose reads raise errors of ours; huggingface_hub itself asks again for what passes."""

    def __init__(self, file: object, stream: Any) -> None:
        """Read a file by huggingface_hub's own stream."""
        super().__init__()
        self._file, self._stream = file, stream

    def read(self, size: int | None = -1) -> bytes:
        """The next ``size`` bytes, or all that are left.

        Raises:
            DatasetError: the Hub refuses.
            StorageError: it gives no answer.
        """
        with asking_the_hub(self._file):
            data: bytes = self._stream.read(-1 if size is None else size)
            return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        """The byte that is read next."""
        return int(self._stream.tell())

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            self._stream.close()
        super().close()


def sha256_of(stream: io.RawIOBase) -> str:
    """The SHA-256 of what is left of a stream, in hexadecimal."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def asking_the_hub(file: object) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of ours.

    Raises:
        DatasetError: the Hub refuses.
        StorageError: it gives no answer.
    """
    try:
        yield
    except ImportError as error:
        raise DatasetError(f"{file}: the Hub is read with huggingface_hub; pip install huggingface_hub") from error
    except hub_file_errors() as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if is_no_answer(error):
            raise StorageError(
                f"{file}: the Hub gives no answer ({said}). What is committed stays, and the same command goes on from "
                "there."
            ) from error
        raise DatasetError(
            f"{file} cannot be read from the Hub: {said}. Check the name, the revision and HF_TOKEN, or download the "
            "file and name its path."
        ) from error
