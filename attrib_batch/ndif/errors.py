"""What an NDIF server's errors mean: ask again, give up until the server is well, or a wrong request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.errors import AttribBatchError, ModelError, RunInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable

TRANSIENT_CODES = frozenset({429, 502, 503, 504})
"""Statuses of answers that may be others a while later."""


class JobFailedError(RunInterruptedError):
    """The server ended a job with an error that comes from the code it ran: sending it again gives the same."""


class JobTooLongError(JobFailedError):
    """The job took longer than the server lets one take; a smaller one may not."""


class JobGoneError(RunInterruptedError):
    """The server does not know a job, ended it for reasons of its own, or holds its result no more."""


def transient_reason(error: BaseException) -> str | None:
    """Return why a call may succeed later; None if it will not."""
    import httpx

    code = status_code(error)
    if code is not None:
        return f"status {code}" if code in TRANSIENT_CODES else None
    for one in (error, error.__cause__):
        if isinstance(one, httpx.TransportError) and not isinstance(
            one, httpx.LocalProtocolError | httpx.UnsupportedProtocol
        ):
            return f"{type(one).__name__}: {one}"
    return None


def status_code(error: BaseException) -> int | None:
    """Return the HTTP status that a call was answered with; None where something else went wrong."""
    import httpx

    for one in (error, error.__cause__):
        if isinstance(one, httpx.HTTPStatusError):
            return one.response.status_code
    return None


def explain_error(
    error: Exception, host: str, *, seconds: float, redact: Callable[[str], str], note: Callable[[str], None]
) -> AttribBatchError:
    """Turn what a call raised in the end into an exception that says what it means for the run.

    Args:
        error: what it raised.
        host: the server, for messages.
        seconds: how long it was tried.
        redact: takes the caller's key out of a text.
        note: told of what is too long for a message.
    """
    from nnsight.intervention.backends.remote import RemoteError

    if isinstance(error, AttribBatchError):
        return error
    reason = transient_reason(error)
    if reason is not None:
        return RunInterruptedError(
            f"{host} cannot be used: {redact(reason)}, for {seconds:g} s. What is committed stays; "
            "the same command goes on when the server is back"
        )
    message = redact(str(error))
    code = status_code(error)
    if code is not None:
        return _explain_refusal(host, code, message)
    if isinstance(error, RemoteError):
        return _explain_failed_job(host, message, note)
    said = f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"
    return ModelError(f"a request to {host} cannot be made, or its answer not be read: {said}")


def _explain_refusal(host: str, code: int, message: str) -> AttribBatchError:
    """Explain an answer with an error status."""
    if code in {401, 403} or (code == 400 and "key" in message.lower()):
        return ModelError(f"{host} refuses the key ({message}); set NDIF_API_KEY to one it knows")
    if code >= 500:
        return RunInterruptedError(
            f"{host} fails with status {code}: {message}. What is committed stays; the same command goes on "
            "when the server is well"
        )
    return ModelError(f"{host} refuses the request with status {code}: {message}")


def _explain_failed_job(host: str, message: str, note: Callable[[str], None]) -> RunInterruptedError:
    """Explain that a job itself ended in an error."""
    lines = message.strip().splitlines() or ["no reason given"]
    if "Traceback (most recent call last)" in message:
        note(message)
        return JobFailedError(
            f"{host} reports an error of the code it was sent, which sending it again will not mend: {lines[-1]}"
        )
    # What the server says of itself is sentences, the first of which says what happened.
    if "execution timeout" in message:
        return JobTooLongError(f"{host}: {lines[0]}")
    if "architecture on this server" in message:
        return JobFailedError(f"{host}: {' '.join(' '.join(lines).split())}")
    return JobGoneError(f"{host} ended a job: {lines[0]}")
