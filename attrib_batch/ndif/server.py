"""An NDIF server: what it holds, and jobs that are sent and fetched.

nnsight's client makes each call once. Here a call that failed for a reason that passes (no connection, a dropped
socket, 429, 502, 503, 504) is made again (``retries``); what else goes wrong is explained (``errors``).
"""

from __future__ import annotations

import json
import platform
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from attrib_batch.errors import ModelError
from attrib_batch.ndif.errors import JobGoneError, explain_error
from attrib_batch.ndif.retries import persist

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nnsight.intervention.backends.remote import RemoteBackend
    from pydantic import SecretStr

    from attrib_batch.ndif.model import RemoteModel

T = TypeVar("T")

PUBLIC_HOST = "https://api.ndif.us"
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.05, 2.0
UNKNOWN_JOB_SECONDS = 60.0
"""How long a server that answers may say nothing of a job before it is taken not to know it: one that has just
started accepts jobs some time before it looks at them."""

_SAME_VERSION = ("nnsight",)
"""Packages whose versions must be equal on both sides: a request is made of their objects."""
PACKAGES_THERE = ("torch", "transformers", "einops")
"""What the engine imports beside nnsight."""


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
        """Check that the server answers, has the same versions, knows the key, and holds the model.

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
        missing = [name for name in PACKAGES_THERE if name not in packages]
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
        """Make a call until it does not fail for a reason that passes; explain what it raises in the end."""
        try:
            return persist(call, seconds=seconds, tell=self._tell)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told without the key
            # Not from the original, which may carry the key in its request.
            raise explain_error(error, self.host, seconds=seconds, redact=self._without_key, note=self._note) from None

    def _tell(self, reason: str, wait: float) -> None:
        self._note(f"{self.host}: {self._without_key(reason)}; trying again in {wait:.1f} s")

    def _without_key(self, message: str) -> str:
        key = self._key.get_secret_value()
        return message.replace(key, "***") if key else message


def _minor(version: str) -> str:
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else "unknown"


def _repository(name: str) -> str:
    """Return the repository or folder, and the revision, that a model's key ends with; for messages."""
    start = name.find("{")
    try:
        found = json.loads(name[start:])
        return str(found["repo_id"]) + (f" at {found['revision']}" if found.get("revision") else "")
    except (ValueError, KeyError, TypeError):
        return name
