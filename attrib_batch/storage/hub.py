"""The Hugging Face Hub: its files as streams, and the errors of huggingface_hub with any HTTP client below it."""

from __future__ import annotations

import io
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


class HubReader(io.RawIOBase):
    """A file of the Hub, whose reads raise errors of ours; huggingface_hub itself asks again for what passes."""

    def __init__(self, file: object, stream: Any) -> None:
        """Read a file by huggingface_hub's own stream."""
        super().__init__()
        self._file, self._stream = file, stream

    def read(self, size: int | None = -1) -> bytes:
        """Read the next ``size`` bytes, or all that are left.

        Raises:
            DatasetError: the Hub refuses.
            StorageError: it gives no answer.
        """
        with translating_hub_errors(self._file):
            data: bytes = self._stream.read(-1 if size is None else size)
            return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte, and return its position."""
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        """Return the position of the byte that is read next."""
        return int(self._stream.tell())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._stream.close()
        super().close()


@contextmanager
def translating_hub_errors(file: object) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of ours.

    Raises:
        DatasetError: the Hub refuses.
        StorageError: it gives no answer.
    """
    try:
        yield
    except ImportError as error:
        raise DatasetError(f"{file}: the Hub is read with huggingface_hub; pip install huggingface_hub") from error
    except _hub_file_errors() as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if _is_no_answer(error):
            raise StorageError(
                f"{file}: the Hub gives no answer ({said}). What is committed stays, and the same command goes on from "
                "there."
            ) from error
        raise DatasetError(
            f"{file} cannot be read from the Hub: {said}. Check the name, the revision and HF_TOKEN, or download the "
            "file and name its path."
        ) from error


def hub_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that a request to the Hub may raise, also for a malformed name; needs huggingface_hub."""
    from huggingface_hub.errors import HFValidationError

    return (_client_error(), OSError, HFValidationError)


def _hub_file_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that reading a file of the Hub may raise, also for a path that its file system cannot read."""
    return (*hub_errors(), ValueError, NotImplementedError)


def _is_no_answer(error: BaseException) -> bool:
    """Return whether the Hub gave no answer, or failed itself, so that asking again later may help."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, _client_error() | ConnectionError) and not isinstance(error, OfflineModeIsEnabled)


def _client_error() -> type[Exception]:
    """Return the base class of the HTTP client's errors: huggingface_hub 2 uses httpx2, earlier ones httpx."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
