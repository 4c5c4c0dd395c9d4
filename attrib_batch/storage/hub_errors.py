"""What huggingface_hub raises, whichever HTTP client its release is built on."""

from __future__ import annotations

SERVER_ERROR = 500
"""The first HTTP status that is the server's own trouble."""


def hub_errors() -> tuple[type[BaseException], ...]:
    """What a question to the Hub may end with, also where its name cannot be one; needs huggingface_hub."""
    from huggingface_hub.errors import HFValidationError

    return (_client_error(), OSError, HFValidationError)


def hub_file_errors() -> tuple[type[BaseException], ...]:
    """What reading a file of the Hub may end with: also a path that its file system does not know how to read."""
    return (*hub_errors(), ValueError, NotImplementedError)


def is_no_answer(error: BaseException) -> bool:
    """Whether the Hub gave no answer, or one of its own trouble: another time it may."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= SERVER_ERROR
    return isinstance(error, _client_error() | ConnectionError) and not isinstance(error, OfflineModeIsEnabled)


def _client_error() -> type[Exception]:
    """The HTTP client's own base class: from release 2 on it is httpx2's, and no longer httpx's."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
