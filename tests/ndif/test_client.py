"""What an NDIF server's silences and refusals mean, without the server."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from nnsight.intervention.backends.remote import RemoteError
from pydantic import SecretStr

from attrib_batch.errors import AttribBatchError, ModelError, RunInterruptedError
from attrib_batch.ndif import retries
from attrib_batch.ndif import server as ndif_server
from attrib_batch.ndif.errors import JobFailedError, JobGoneError, JobTooLongError, transient_reason
from attrib_batch.ndif.server import NdifServer
from tests.support.http_answers import answering

KEY = "00000000-aaaa-bbbb-cccc-121212121212"
HOST = "http://ndif.test"
MODEL_KEY = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "org/one", "revision": null, "task": "t"}'
MODEL: Any = SimpleNamespace(key=MODEL_KEY, traced=SimpleNamespace(_remoteable_get_env=dict))
PYTHON = platform.python_version()
PACKAGES = {"nnsight": version("nnsight"), "torch": "2", "transformers": "5", "einops": "0"}


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.01)


def status_error(code: int, **headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", f"{HOST}/request", headers={"ndif-api-key": KEY})
    return httpx.HTTPStatusError(f"status {code}", request=request, response=httpx.Response(code, headers=headers))


def caused(error: BaseException, message: str = "Failed to send request: detail") -> RemoteError:
    """An error as nnsight raises it: its own, with httpx's as the cause."""
    outer = RemoteError(message)
    outer.__cause__ = error
    return outer


def raised_by(server: NdifServer, *errors: BaseException, seconds: float = 5.0) -> tuple[AttribBatchError | None, int]:
    """What comes of a call that fails so, one error after the other, and then succeeds; and how often it is made."""
    left, calls = list(errors), 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if left:
            raise left.pop(0)

    try:
        server._persist(call, seconds)
    except AttribBatchError as error:
        return error, calls
    return None, calls


@pytest.mark.parametrize(
    "error",
    [
        *(status_error(code) for code in (429, 502, 503, 504)),
        caused(status_error(503)),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        caused(httpx.RemoteProtocolError("disconnected")),
    ],
    ids=repr,
)
def test_what_passes_is_tried_again(error: Exception) -> None:
    assert transient_reason(error)
    notes: list[str] = []
    assert raised_by(NdifServer(HOST, SecretStr(KEY), note=notes.append), error, error) == (None, 3)
    assert len(notes) == 2
    assert all("trying again in" in note for note in notes)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (caused(status_error(400), f"Invalid API key format: '{KEY}'."), ModelError, "refuses the key"),
        (caused(status_error(401)), ModelError, "set NDIF_API_KEY"),
        (status_error(403), ModelError, "set NDIF_API_KEY"),
        (caused(status_error(400), "nnsight is too old"), ModelError, "refuses the request with status 400: nnsight"),
        (caused(status_error(422)), ModelError, "status 422"),
        (status_error(404), ModelError, "status 404"),
        (caused(status_error(500), "Internal server error."), RunInterruptedError, "fails with status 500: Internal"),
        (httpx.LocalProtocolError(f"Illegal header value {KEY}"), ModelError, "cannot be made"),
        (httpx.UnsupportedProtocol("no protocol"), ModelError, "cannot be made"),
        (ValueError("not JSON\nat all"), ModelError, "its answer not be read: ValueError: not JSON"),
        (TypeError("cannot pickle 'lock' object"), ModelError, "cannot pickle"),
        (JobGoneError("gone"), JobGoneError, "gone"),
    ],
    ids=repr,
)
def test_what_stays_is_told_once_and_without_the_key(error: Exception, expected: type[Exception], message: str) -> None:
    told, calls = raised_by(NdifServer(HOST, SecretStr(KEY)), error)
    assert type(told) is expected
    assert calls == 1
    assert message in str(told)
    assert KEY not in str(told)


@pytest.mark.parametrize(
    ("message", "expected", "said"),
    [
        ("Your job exceeded the execution timeout of 1.0s.", JobTooLongError, "timeout of 1.0s."),
        (
            "Traceback (most recent call last):\n  File x\nRuntimeError: the execution timeout is odd",
            JobFailedError,
            "RuntimeError: the execution timeout is odd",
        ),
        (
            "The model architecture on this server doesn't match your code: no module at 'h.9'.\n\nCompare:\n\n  it",
            JobFailedError,
            "no module at 'h.9'",
        ),
        ("Replica was evicted while processing your request. Sorry.", JobGoneError, "Replica was evicted"),
        ("", JobGoneError, "no reason given"),
    ],
)
def test_what_a_job_ends_in(message: str, expected: type[Exception], said: str) -> None:
    told, calls = raised_by(NdifServer(HOST, SecretStr(KEY)), RemoteError(message))
    assert type(told) is expected
    assert calls == 1
    assert said in str(told)
    assert "\n" not in str(told)


def test_the_time_is_used_up_before_giving_up() -> None:
    error = httpx.ConnectError(f"refused, by the way {KEY}")
    told, calls = raised_by(NdifServer(HOST, SecretStr(KEY)), *[error] * 1000, seconds=0.3)
    assert type(told) is RunInterruptedError
    assert "for 0.3 s" in str(told)
    assert "the same command goes on" in str(told)
    assert KEY not in str(told)
    assert 2 < calls < 40


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for() -> None:
    busy = status_error(429, **{"retry-after": "3600"})
    told, calls = raised_by(NdifServer(HOST, SecretStr(KEY)), busy, seconds=0.5)
    assert type(told) is RunInterruptedError
    assert calls == 1


@pytest.mark.parametrize("asked", ["0.3", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_the_wait_a_server_asks_for_is_kept(asked: str) -> None:
    notes: list[str] = []
    server = NdifServer(HOST, SecretStr(""), note=notes.append)
    assert raised_by(server, status_error(503, **{"retry-after": asked})) == (None, 2)
    assert ("trying again in 0.3 s" in notes[0]) == (asked == "0.3")


def environment(python: str = PYTHON, **packages: str | None) -> tuple[int, str]:
    held = {name: value for name, value in {**PACKAGES, **packages}.items() if value is not None}
    return 200, json.dumps({"python_version": f"{python} (main)", "packages": held})


def status(*keys: str) -> tuple[int, str]:
    return 200, json.dumps({"deployments": {f"1f2e3:ModelActor:{key}": {} for key in keys}})


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (environment(python="3.9.1"), "other versions: python 3.9 there"),
        (environment(nnsight="0.0.1"), f"nnsight 0.0.1 there, {version('nnsight')} here"),
        (environment(einops=None), "lacks einops"),
        ((200, "<html>a page</html>"), "its answer not be read"),
        ((404, "{}"), "status 404"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_server_that_does_not_fit_is_refused(env: tuple[int, str], message: str) -> None:
    with (
        answering({"/env": env, "/status": status(MODEL_KEY)}) as url,
        pytest.raises(ModelError, match="^.*" + message.replace("(", r"\(")),
    ):
        NdifServer(url, SecretStr("")).check(MODEL, seconds=5)


def test_the_models_a_server_has_are_named() -> None:
    other = MODEL_KEY.replace("org/one", "org/two").replace("null", '"step1000"')
    with answering({"/env": environment(), "/status": status(other)}) as url:
        server = NdifServer(url, SecretStr(""))
        with pytest.raises(ModelError, match=r"has not deployed org/one; models it has: org/two at step1000\."):
            server.check(MODEL, seconds=5)
    with answering({"/env": environment(), "/status": status(MODEL_KEY)}) as url:
        NdifServer(url, SecretStr("")).check(MODEL, seconds=5)


@pytest.mark.parametrize("key", ["a secret", "secret\n", "sécret"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ModelError, match="NDIF_API_KEY") as caught:
        NdifServer(HOST, SecretStr(key)).check(MODEL, seconds=5)
    assert key.strip() not in str(caught.value)


def test_a_job_that_a_server_never_speaks_of_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndif_server, "UNKNOWN_JOB_SECONDS", 0.2)
    with answering({}) as url, pytest.raises(JobGoneError, match="knows no job f00"):
        NdifServer(url, SecretStr("")).fetch(MODEL, "f00", lambda _: None, seconds=20)


def test_a_job_that_does_not_end_is_given_up_with_its_last_status() -> None:
    said = 200, json.dumps({"id": "f00", "status": "QUEUED", "description": "position 7"})
    told: list[Any] = []
    with answering({"/response/f00": said}) as url, pytest.raises(JobGoneError, match="QUEUED"):
        NdifServer(url, SecretStr("")).fetch(MODEL, "f00", told.append, seconds=0.5)
    assert [(one.status, one.description) for one in told] == [("QUEUED", "position 7")]


def test_a_result_that_is_held_no_more_is_gone_and_its_address_is_not_shown() -> None:
    answers: dict[str, tuple[int, str]] = {"/results/f00?signature=s1gned": (403, "Request has expired")}
    with answering(answers) as url:
        data = f"{url}/results/f00?signature=s1gned"
        answers["/response/f00"] = 200, json.dumps({"id": "f00", "status": "COMPLETED", "data": data})
        server = NdifServer(url, SecretStr(""))
        with pytest.raises(JobGoneError, match=r"no more \(status 403\)") as caught:
            server.fetch(MODEL, "f00", lambda _: None, seconds=5)
    assert "s1gned" not in str(caught.value)


def test_only_the_given_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "another")
    assert NdifServer(HOST, SecretStr(""))._backend(MODEL, None).api_key == ""
