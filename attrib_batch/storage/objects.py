"""Object stores: their URLs, and pyarrow's file systems for them, set up from the environment.

Credentials are found as pyarrow finds them (``AWS_ACCESS_KEY_ID`` and the like, profiles, the machine's role;
``GOOGLE_APPLICATION_CREDENTIALS``). None is ever held here, so that none can reach a pickle, a file or a message.
"""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from attrib_batch.errors import OutputError, RequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REQUEST_SECONDS = 5.0
"""How long a store may send nothing before a request is made again."""
ATTEMPTS = 6
"""How often a request is made; pyarrow waits between them, longer each time, about 10 s together."""
GS_RETRY_SECONDS = 60
PATIENCE_SECONDS = 180.0
"""How long a store that answers nothing may keep one call waiting: 45 s a request, twice that where an object is sent,
and up to three requests to a call."""
SINGLE_PUT_BYTES = 5 << 20
"""Up to this size an object is sent in one request; pyarrow itself would go up to 10 MiB."""

SHORT_READ_PAUSES = (0.5, 1.0, 2.0, 4.0)
_SHORT_READ = "Failed to flush response stream"
"""pyarrow's message where the store's error does not fit into the buffer for the content of an object."""

T = TypeVar("T")

_URL = re.compile(r"^(?P<scheme>s3|gs):/{1,2}(?P<bucket>[^/]*)(?:/+(?P<key>.*))?$", re.DOTALL)
_REFUSED = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH"
    "|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|HTTP status 4|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND"
    "|INVALID_ARGUMENT"
)
"""Texts of errors that are the request's fault, so that asking again brings the same."""


@dataclass(frozen=True)
class ObjectUrl:
    """``scheme://bucket/key``; the key may be empty."""

    scheme: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> ObjectUrl:
        """Read a URL; slashes too many or too few after the scheme, as ``pathlib`` leaves them, are forgiven.

        Raises:
            RequestError: no bucket, or something in it that no URL of an object has.
        """
        match = _URL.match(text)
        if match is None:
            raise RequestError(f"{text!r} is not the URL of an object: write s3://bucket/folder or gs://bucket/folder")
        bucket, key = match["bucket"], (match["key"] or "").strip("/")
        if "@" in bucket or "?" in text:
            # Not repeated: it may hold a secret.
            raise RequestError(
                f"a {match['scheme']}:// URL with '@' in its bucket or with '?': write "
                f"{match['scheme']}://bucket/folder alone. Credentials, region and endpoint come from the environment."
            )
        if not bucket or any(part in {"", ".", ".."} for part in key.split("/") if key):
            raise RequestError(f"{text}: write {match['scheme']}://bucket/folder, with no empty or dotted folder")
        return cls(match["scheme"], bucket, key)

    def below(self, relative: str) -> ObjectUrl:
        """Return the URL of a path below this one."""
        return ObjectUrl(self.scheme, self.bucket, "/".join(part for part in (self.key, relative) if part))

    @property
    def path(self) -> str:
        """What pyarrow's file systems call it."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


def is_object_url(text: object) -> bool:
    """Return whether a path as the user wrote it is the URL of an object or a folder of them."""
    return re.match(r"^(s3|gs):/", str(text)) is not None


def file_system(url: ObjectUrl) -> fs.FileSystem:
    """Return the file system that holds an object: one per process, bucket and endpoint."""
    return _file_system(url.scheme, url.bucket, endpoint_of(url.scheme), single_put=False)


def retrying_short_reads(read: Callable[[], T]) -> T:
    """Read again where pyarrow does not retry: the store's error was longer than the content that was asked for."""
    for pause in SHORT_READ_PAUSES:
        try:
            return read()
        except StorageError as error:
            if _SHORT_READ not in str(error):
                raise
            time.sleep(pause)
    return read()


def put(url: ObjectUrl, data: bytes | pa.Buffer, *, in_turn: bool = False) -> None:
    """Write an object whole: it is there with all of ``data``, or as it was before.

    pyarrow publishes what an output stream has got when the stream is closed, and also when it is only dropped. So
    nothing may come between the opening of a stream and its end: the whole content is given at once, and in a thread
    that no signal reaches. A failed part of a larger object keeps pyarrow from publishing it.

    The parts of an upload that failed, or whose process was killed, stay in the bucket: nobody sees them, and they cost
    what objects cost. pyarrow has no way to abort an upload, nor to list those that were begun. So a bucket of S3 needs
    a lifecycle rule: AbortIncompleteMultipartUpload, DaysAfterInitiation 1. On Google Cloud Storage, uploads that are
    not finished expire by themselves.

    Args:
        url: where.
        data: the content.
        in_turn: send the parts of a larger object one after the other; otherwise each is copied, and all are sent at
            once.

    Raises:
        OutputError: it cannot be written.
        StorageError: the store gives no answer.
    """
    small = len(data) <= SINGLE_PUT_BYTES
    failed: list[BaseException] = []

    def write() -> None:
        try:
            # Without a request at its opening, a stream could fail when it is written to, and publish when dropped;
            # with so little content nothing is sent before it is closed.
            endpoint = endpoint_of(url.scheme)
            system = _file_system(url.scheme, url.bucket, endpoint, single_put=small, in_turn=in_turn)
            stream = system.open_output_stream(url.path)
            stream.write(data)
            stream.close()
        except BaseException as error:  # noqa: BLE001 - it is raised where it can be handled
            failed.append(error)

    thread = threading.Thread(target=write, name="put")
    thread.start()
    thread.join()
    if failed:
        with translating_errors("write", url):
            if isinstance(failed[0], FileNotFoundError):  # what Google's store says of the bucket
                raise OutputError(f"cannot write {url}: there is no bucket {url.bucket}.") from failed[0]
            raise failed[0]


def put_file(url: ObjectUrl, path: Path) -> None:
    """Write an object whole from a local file of any size, a part of it in memory at most; raises what `put` raises."""
    with pa.memory_map(str(path)) as file:
        put(url, file.read_buffer(), in_turn=True)


@contextmanager
def translating_errors(verb: str, place: object) -> Iterator[None]:
    """Turn what pyarrow raises for an object store into errors of ours; that there is no such object passes.

    Raises:
        OutputError: the store refuses.
        StorageError: it gives no answer, or none that is of use.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        said = " ".join(str(error).split())[:300]
        if isinstance(error, PermissionError) or _REFUSED.search(said):
            raise refused(verb, place, said) from error
        raise unanswered(verb, place, said) from error


def refused(verb: str, place: object, said: str) -> OutputError:
    """Return the error of a request that the store does not allow; ``said`` is what it answered."""
    return OutputError(
        f"cannot {verb} {place}: {said}. Check the bucket's name, the credentials in the environment, and what "
        "they allow."
    )


def unanswered(verb: str, place: object, said: str) -> StorageError:
    """Return the error of a store that gives no answer, or none that is of use."""
    return StorageError(
        f"cannot {verb} {place}: {said}. Asked {ATTEMPTS} times; what is committed stays, and the same command "
        "goes on from there."
    )


def endpoint_of(scheme: str) -> str | None:
    """Return the server that the environment names in place of Amazon's or of Google's, or None."""
    if scheme == "gs":
        return os.environ.get("STORAGE_EMULATOR_HOST") or None
    # Not every release of the SDK in pyarrow reads these by itself.
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@lru_cache(maxsize=32)
def _file_system(
    scheme: str, bucket: str, endpoint: str | None, *, single_put: bool, in_turn: bool = False
) -> fs.FileSystem:
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=GS_RETRY_SECONDS), **_emulator(endpoint))
    return fs.S3FileSystem(
        **place_of(bucket, endpoint),
        request_timeout=REQUEST_SECONDS,
        connect_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=single_put,
        background_writes=not in_turn,
    )


def _emulator(endpoint: str | None) -> dict[str, Any]:
    """Return the options for an emulator of Google's store, which asks for no credentials."""
    if endpoint is None:
        return {}
    scheme, separator, address = endpoint.rstrip("/").rpartition("://")
    return {"anonymous": True, "endpoint_override": address, "scheme": scheme if separator else "http"}


def place_of(bucket: str, endpoint: str | None) -> dict[str, Any]:
    """Return where a bucket is: the endpoint that the environment names, or else the bucket's own region."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint is not None:
        # What Amazon's own servers check by default, many others store as if it were content.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        scheme, separator, address = endpoint.rstrip("/").rpartition("://")
        return {
            "endpoint_override": address,
            "scheme": scheme if separator else "https",
            "region": named or "us-east-1",
        }
    try:
        return {"region": fs.resolve_s3_region(bucket)}
    except OSError:  # no such bucket, or no answer: whoever uses it is told so
        return {"region": named}
