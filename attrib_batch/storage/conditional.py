"""Conditional writes to object stores: create an object only where there is none, replace only what was read.

pyarrow has none. On S3 they are the headers ``If-None-Match`` and ``If-Match``, on Google Cloud Storage the parameter
``ifGenerationMatch``. The vendors' own libraries send them, since these find credentials, profiles and roles where the
SDKs in pyarrow do; region and endpoint are those of `objects`.

A request whose answer was lost is sent again, and then meets its own object: who is told that an object is not as it
was reads it, and compares.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from attrib_batch.errors import OutputError
from attrib_batch.storage.objects import ATTEMPTS, REQUEST_SECONDS, endpoint_of, place_of, refused, unanswered

if TYPE_CHECKING:
    from attrib_batch.storage.objects import ObjectUrl

GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
GENERATION = "x-goog-generation"
FIRST_PAUSE_SECONDS = 0.25
"""Before a request to Google's store is sent again; each pause is twice the one before."""

_CHANGED = {HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED}
"""Statuses of an answer where an object is not as it was, or is just being written by another."""
_CONTENT = {"Content-Type": "application/octet-stream"}
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Refusals that may not come again."""


@dataclass(frozen=True)
class Version:
    """A file as it was when it was read or written."""

    data: bytes
    tag: str = ""
    """What an object store calls this version: an entity tag, or a generation. Empty of a local file."""


def read_object(url: ObjectUrl) -> Version | None:
    """Read an object and the tag of its version; return None where there is no object.

    Raises:
        OutputError: the store refuses.
        StorageError: it gives no answer.
    """
    return _google_read(url) if url.scheme == "gs" else _amazon_read(url)


def write_object(url: ObjectUrl, data: bytes, before: Version | None) -> Version | None:
    """Write an object whole if it is still ``before`` (None: if there is none); return None where it is not.

    Raises:
        OutputError: the store refuses, or knows no conditional writes.
        StorageError: it gives no answer.
    """
    return _google_write(url, data, before) if url.scheme == "gs" else _amazon_write(url, data, before)


def check_conditions(url: ObjectUrl, version: Version) -> None:
    """Check that a store honours conditions, on an object that was just written: some ignore them.

    Args:
        url: the object.
        version: what it is; the same content is sent again under conditions that do not hold.

    Raises:
        OutputError: the store writes all the same.
        StorageError: it gives no answer.
    """
    for before in (None, Version(b"", _stale(url))):
        if write_object(url, version.data, before) is not None:
            raise _unconditional(url)


def _stale(url: ObjectUrl) -> str:
    """Return a tag that no version of an object has."""
    return "1" if url.scheme == "gs" else f'"{0:032x}"'


def _unconditional(url: ObjectUrl) -> OutputError:
    return OutputError(
        f"cannot keep other drivers out of {url}: this object store has no conditional writes (If-None-Match and "
        "If-Match on S3, ifGenerationMatch on Google Cloud Storage). Use one that has, or a newer release of it, or a "
        "folder that all nodes share."
    )


def _amazon_read(url: ObjectUrl) -> Version | None:
    answer = _ask_amazon("read", url, "get_object")
    return None if answer is None else Version(answer["Body"], answer["ETag"])


def _amazon_write(url: ObjectUrl, data: bytes, before: Version | None) -> Version | None:
    condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before.tag}
    answer = _ask_amazon("write", url, "put_object", Body=data, **condition)
    return None if answer is None else Version(data, answer["ETag"])


def _ask_amazon(verb: str, url: ObjectUrl, operation: str, **arguments: Any) -> dict[str, Any] | None:
    """Send a request; return the answer, or None where the object is absent or not as it was."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        client = _amazon(url.bucket, endpoint_of(url.scheme))
        answer: dict[str, Any] = getattr(client, operation)(Bucket=url.bucket, Key=url.key, **arguments)
        if operation == "get_object":
            answer["Body"] = answer["Body"].read()
    except ClientError as error:
        status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        if status in _CHANGED or code == "NoSuchKey":
            return None
        if status == HTTPStatus.NOT_IMPLEMENTED:
            raise _unconditional(url) from error
        raise _failed(verb, url, status, f"{code}: {error.response['Error'].get('Message', '')}") from error
    except HTTPClientError as error:
        raise unanswered(verb, url, str(error)) from error
    except BotoCoreError as error:  # no credentials, no such profile, ...
        raise refused(verb, url, str(error)) from error
    return answer


@lru_cache(maxsize=32)
def _amazon(bucket: str, endpoint: str | None) -> Any:
    from botocore.config import Config
    from botocore.session import Session

    place = place_of(bucket, endpoint)
    if endpoint is not None:
        endpoint = f"{place['scheme']}://{place['endpoint_override']}"
    return Session().create_client(
        "s3",
        region_name=place["region"] or "us-east-1",
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=REQUEST_SECONDS,
            read_timeout=REQUEST_SECONDS,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # As pyarrow does; other stores have no names for their buckets.
            s3={"addressing_style": "auto" if endpoint is None else "path"},
        ),
    )


def _google_read(url: ObjectUrl) -> Version | None:
    answer = _ask_google("read", url, "GET", f"storage/v1/b/{url.bucket}/o/{quote(url.key, safe='')}", alt="media")
    if answer is None:
        return None
    if GENERATION not in answer.headers:
        raise _unconditional(url)
    return Version(answer.content, answer.headers[GENERATION])


def _google_write(url: ObjectUrl, data: bytes, before: Version | None) -> Version | None:
    path, generation = f"upload/storage/v1/b/{url.bucket}/o", "0" if before is None else before.tag
    answer = _ask_google(
        "write", url, "POST", path, data, uploadType="media", name=url.key, ifGenerationMatch=generation
    )
    return None if answer is None else Version(data, str(answer.json()["generation"]))


def _ask_google(verb: str, url: ObjectUrl, method: str, path: str, data: bytes | None = None, **query: str) -> Any:
    """Send a request; return the answer, or None where the object is absent or not as it was."""
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    endpoint = endpoint_of(url.scheme)
    address = _google_address(endpoint)
    failure: OutputError = unanswered(verb, url, "no answer")
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            answer = _google(endpoint).request(
                method,
                f"{address}/{path}",
                params=query,
                data=data,
                headers=_CONTENT if data is not None else None,
                timeout=REQUEST_SECONDS,
            )
        except RequestException as error:
            failure = unanswered(verb, url, str(error))
            continue
        except GoogleAuthError as error:  # no credentials, or none that hold
            raise refused(verb, url, str(error)) from error
        status = answer.status_code
        if status < HTTPStatus.BAD_REQUEST:
            return answer
        if status in _CHANGED or (status == HTTPStatus.NOT_FOUND and verb == "read"):
            return None
        if status == HTTPStatus.NOT_IMPLEMENTED:
            raise _unconditional(url)
        failure = _failed(verb, url, status, f"{status} {answer.reason}: {answer.text}")
        if not _passes(status):
            break
    raise failure


@lru_cache(maxsize=4)
def _google(endpoint: str | None) -> Any:
    import google.auth
    import requests
    from google.auth.transport.requests import AuthorizedSession

    if endpoint is not None:  # an emulator asks for no credentials
        return requests.Session()
    credentials, _ = google.auth.default(scopes=[GOOGLE_SCOPE])
    return AuthorizedSession(credentials)


def _google_address(endpoint: str | None) -> str:
    if endpoint is None:
        return "https://storage.googleapis.com"
    return endpoint.rstrip("/") if "://" in endpoint else f"http://{endpoint.rstrip('/')}"


def _passes(status: int) -> bool:
    return status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _failed(verb: str, url: ObjectUrl, status: int, said: str) -> OutputError:
    said = " ".join(said.split())[:300]
    return unanswered(verb, url, said) if _passes(status) else refused(verb, url, said)
