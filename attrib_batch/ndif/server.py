"""An NDIF server as a run sees it: what it holds, jobs sent and fetched, and what its silences and refusals mean.

nnsight's client makes each call once. Here a call that failed for a reason that passes (no connection, a dropped
socket, 429, 502, 503, 504) is made again, later and later, until the time is up; one that failed for a reason that
stays is told as it is.
"""

from __future__ import annotations

import json
import platform
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from attrib_batch.errors import AttribBatchError, ModelError, RunInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nnsight.intervention.backends.remote import RemoteBackend
    from pydantic import SecretStr
    from tenacity import RetryCallState

    from attrib_batch.ndif.model import RemoteModel

T = TypeVar("T")

PUBLIC_HOST = "https://api.ndif.us"
TRANSIENT_CODES = frozenset({429, 502, 503, 504})
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.05, 2.0
UNKNOWN_JOB_SECONDS = 60.0
"""How long a server that answers may say nothing of a job before it is taken not to know it: one that has just
started accepts jobs some time before it looks at them."""

_SAME_VERSION = ("nnsight",)
"""Packages whose versions must be equal on both sides: a request is made of their objects."""
_NEEDED_THERE = ("torch", "transformers", "einops")
"""What the engine imports."""


class JobFailedError(RunInterruptedError):
    """The server ended a job with an error that comes from the code it ran: sending it again gives the same."""


class JobTooLongError(JobFailedError):
    """The job took longer than the server lets one take; a smaller one may not."""


class JobGoneError(RunInterruptedError):
    """The server does not know a job, ended it for reasons of its own, or holds its result no more."""


@dataclass(frozen=True)
class JobStatus:
    """What the server last said of a job."""

    status: str
    """RECEIVED, QUEUED, DISPATCHED, RUNNING, COMPLETED, ..."""
    description: str
    """In its own words; while a job is queued, its position."""


class NdifServer:
    """A server, and a key to it."""

    def __init__(self, host: str, key: SecretStr, *, note: Callable[[str], None] = lambda _: None) -> None:
        """Remember where the server is; nothing is asked of it yet.

        Args:
            host: its address, http or https.
            key: the caller's key; may be empty. It appears in no message.
            note: told of every call that is to be made again.
        """
        self.host = host.rstrip("/")
        self.downloaded_bytes = 0
        self._key = key
        self._note = note

    def check(self, model: RemoteModel, *, seconds: float) -> None:
        """Whether the server answers, runs the same versions, knows the key, and holds the model.

        Args:
            model: the model a run needs.
            seconds: how long a server that does not answer is waited for.

        Raises:
            ModelError: it does not fit, and why.
            RunInterruptedError: it does not answer.
        """
        if not re.fullmatch(r"[!-~]*", self._key.get_secret_value()):
            raise ModelError("NDIF_API_KEY holds spaces or characters that no key has; set it to the key alone")
        environment = self._get("/env", seconds)
        packages = environment.get("packages", {})
        there = {"python": _minor(str(environment.get("python_version", "")))}
        there |= {name: str(packages.get(name, "none")) for name in _SAME_VERSION}
        here = {"python": _minor(platform.python_version())} | {name: version(name) for name in _SAME_VERSION}
        differ = [f"{name} {there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]
        if differ:
            raise ModelError(
                f"{self.host} runs other versions: {'; '.join(differ)}. Requests carry code, so they must be equal: "
                "run the job in an environment with the server's versions"
            )
        missing = [name for name in _NEEDED_THERE if name not in packages]
        if missing:
            raise ModelError(f"{self.host} lacks {', '.join(missing)}, which the scoring code it is sent imports")
        # A deployment's name is the model's key behind an id of its own.
        deployed = list(self._get("/status", seconds).get("deployments", {}))
        if not any(name.endswith(model.key) for name in deployed):
            names = sorted({_repository(name) for name in deployed})
            raise ModelError(
                f"{self.host} has not deployed {_repository(model.key)}; models it has: {', '.join(names) or 'none'}. "
                "What a server says of that may be a minute old"
            )

    def submit(self, model: RemoteModel, send: Callable[[RemoteBackend], None], *, seconds: float) -> str:
        """Send a job; returns its id. It is not waited for.

        Args:
            model: the model it runs on.
            send: opens the session with the backend it is given.
            seconds: how long to go on trying while the server cannot be reached or is busy.

        Raises:
            ModelError: the server refuses the request or the key.
            RunInterruptedError: it could not be reached in time.
        """

        def once() -> str:
            backend = self._backend(model, None)
            send(backend)
            return str(backend.job_id)

        return self._persist(once, seconds)

    def fetch(
        self, model: RemoteModel, job_id: str, told: Callable[[JobStatus], None], *, seconds: float
    ) -> Mapping[str, Any]:
        """Wait for a job; returns the values it saved.

        Args:
            model: the model it runs on.
            job_id: what ``submit`` gave, in this process or another.
            told: hears every change of the job's status.
            seconds: how long it may take.

        Raises:
            JobFailedError: the code that was sent raised on the server.
            JobGoneError: the server knows nothing of it any more.
            RunInterruptedError: the server does not answer, or not in time.
        """
        backend = self._backend(model, job_id)
        started = time.monotonic()
        last: JobStatus | None = None
        pause = FIRST_POLL_SECONDS
        silence = 0.0
        while (elapsed := time.monotonic() - started) < seconds:
            values: Mapping[str, Any] | None = self._persist(backend.poll, seconds - elapsed)
            if values is not None:
                self.downloaded_bytes += backend.result_bytes
                return values
            now = backend.last
            if now is None and silence > UNKNOWN_JOB_SECONDS:
                raise JobGoneError(f"{self.host} knows no job {job_id}")
            if now is not None and now != last:
                told(now)
                last, pause = now, FIRST_POLL_SECONDS
            time.sleep(pause)
            silence += pause
            pause = min(2 * pause, LONGEST_POLL_SECONDS)
        raise JobGoneError(
            f"job {job_id} on {self.host} did not end within {seconds:g} s; its last status was "
            f"{last.status if last else 'none'} (where the server is only slow, raise workers.timeout_seconds)"
        )

    def _backend(self, model: RemoteModel, job_id: str | None) -> Any:
        from attrib_batch.ndif.backend import ListeningBackend

        return ListeningBackend(
            model.key,
            host=self.host,
            api_key=self._key.get_secret_value(),
            env=model.traced._remoteable_get_env(),
            blocking=False,
            job_id=job_id,
        )

    def _get(self, path: str, seconds: float) -> dict[str, Any]:
        import httpx

        def once() -> dict[str, Any]:
            key = self._key.get_secret_value()
            answer = httpx.get(
                f"{self.host}{path}",
                headers={"ndif-api-key": key} if key else {},
                timeout=httpx.Timeout(CONNECT_SECONDS, read=READ_SECONDS),
            )
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            return found

        return self._persist(once, seconds)

    def _persist(self, call: Callable[[], T], seconds: float) -> T:
        """Make a call until it does not fail for a reason that passes; translate one that stays."""
        from tenacity import Retrying, retry_if_exception

        patience = _Patience(seconds)
        again = Retrying(
            retry=retry_if_exception(lambda error: transient_reason(error) is not None),
            wait=patience.wait,
            stop=patience.over,
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return again(call)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told without the key
            raise self._translated(error, seconds) from None  # the original may carry the key in its request

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        reason = transient_reason(error) if error else "no answer"
        self._note(f"{self.host}: {self._without_key(str(reason))}; trying again in {wait:.1f} s")

    def _translated(self, error: Exception, seconds: float) -> AttribBatchError:
        from nnsight.intervention.backends.remote import RemoteError

        if isinstance(error, AttribBatchError):
            return error
        reason = transient_reason(error)
        if reason is not None:
            return RunInterruptedError(
                f"{self.host} cannot be used: {self._without_key(reason)}, for {seconds:g} s. What is committed stays; "
                "the same command goes on when the server is back"
            )
        message = self._without_key(str(error))
        code = _code(error)
        if code is not None:
            return self._refusal(code, message)
        if isinstance(error, RemoteError):
            return self._job_error(message)
        said = f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"
        return ModelError(f"a request to {self.host} cannot be made, or its answer not be read: {said}")

    def _refusal(self, code: int, message: str) -> AttribBatchError:
        """What an answer with an error status means."""
        if code in {401, 403} or (code == 400 and "key" in message.lower()):
            return ModelError(f"{self.host} refuses the key ({message}); set NDIF_API_KEY to one it knows")
        if code >= 500:
            return RunInterruptedError(
                f"{self.host} fails with status {code}: {message}. What is committed stays; the same command goes on "
                "when the server is well"
            )
        return ModelError(f"{self.host} refuses the request with status {code}: {message}")

    def _job_error(self, message: str) -> RunInterruptedError:
        """What a job's own end in an error means."""
        lines = message.strip().splitlines() or ["no reason given"]
        if "Traceback (most recent call last)" in message:
            self._note(message)
            return JobFailedError(
                f"{self.host} reports an error of the code it was sent, which sending it again will not mend: "
                f"{lines[-1]}"
            )
        # What the server says of itself is sentences, the first of which says what happened.
        if "execution timeout" in message:
            return JobTooLongError(f"{self.host}: {lines[0]}")
        if "architecture on this server" in message:
            return JobFailedError(f"{self.host}: {' '.join(' '.join(lines).split())}")
        return JobGoneError(f"{self.host} ended a job: {lines[0]}")

    def _without_key(self, message: str) -> str:
        key = self._key.get_secret_value()
        return message.replace(key, "***") if key else message


def transient_reason(error: BaseException) -> str | None:
    """Why a call may succeed later; None if it will not."""
    import httpx

    code = _code(error)
    if code is not None:
        return f"status {code}" if code in TRANSIENT_CODES else None
    for one in (error, error.__cause__):
        if isinstance(one, httpx.TransportError) and not isinstance(
            one, httpx.LocalProtocolError | httpx.UnsupportedProtocol
        ):
            return f"{type(one).__name__}: {one}"
    return None


def _code(error: BaseException) -> int | None:
    """The HTTP status a call was answered with, if that is what went wrong."""
    import httpx

    for one in (error, error.__cause__):
        if isinstance(one, httpx.HTTPStatusError):
            return one.response.status_code
    return None


class _Patience:
    """How long to wait before a call is made again, and when not to make it any more."""

    def __init__(self, seconds: float) -> None:
        from tenacity import wait_exponential, wait_random

        self._seconds = seconds
        self._growing = wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS) + wait_random(
            0, FIRST_WAIT_SECONDS
        )

    def wait(self, state: RetryCallState) -> float:
        """Exponential with jitter, but a last time when the time is up; no shorter than the server asks for."""
        return max(min(self._growing(state), self._left(state)), _asked_wait(state))

    def over(self, state: RetryCallState) -> bool:
        """Whether the time is up, or will be before the server wants to be asked again."""
        left = self._left(state)
        return left <= 0 or _asked_wait(state) > left

    def _left(self, state: RetryCallState) -> float:
        return max(0.0, self._seconds - (state.seconds_since_start or 0.0))


def _asked_wait(state: RetryCallState) -> float:
    """The seconds of the answer's Retry-After header, if it has one."""
    import httpx

    error = state.outcome.exception() if state.outcome else None
    for one in (error, error.__cause__ if error else None):
        if isinstance(one, httpx.HTTPStatusError):
            asked = one.response.headers.get("retry-after", "")
            return float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else 0.0
    return 0.0


def _minor(version: str) -> str:
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else "unknown"


def _repository(name: str) -> str:
    """The repository or folder, and the revision, that a model's key ends with; for messages."""
    start = name.find("{")
    try:
        found = json.loads(name[start:])
        return str(found["repo_id"]) + (f" at {found['revision']}" if found.get("revision") else "")
    except (ValueError, KeyError, TypeError):
        return name
