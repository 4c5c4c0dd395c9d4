"""An HTTP proxy on loopback that fails on request, between a client and the NDIF server.

It stands in front of the API and, by way of the paths of its bucket, of the object store: the addresses of results
that the API hands out are changed to the proxy's own, so that downloads pass through it too. No websockets.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import Self

LOOPBACK = "127.0.0.1"
BUCKET = "/ndif-results"
UPSTREAM_SECONDS = 120
KEY_HEADER = "ndif-api-key"

Drop = Literal["before", "after", "never"]


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of its being answered: a status, or the end of the connection.

    A connection dropped ``after`` is one whose request the server has got, and answered in vain; one that is dropped
    ``never`` stays open without an answer, until the proxy ends.
    """

    method: str
    prefix: str
    status: int | None = None
    retry_after: float | None = None
    echo: str | None = None
    drop: Drop | None = None


@dataclass(frozen=True)
class Exchange:
    """A request that came, and what was sent back: no status where the connection was dropped."""

    method: str
    path: str
    forwarded: bool
    status: int | None
    response_bytes: int
    key: str | None = None
    """The API key that came with the request."""
    ended_at: float = field(default_factory=time.monotonic)


class FaultyProxy:
    """A proxy in front of the API at ``api`` and the object store at ``object_store``; a context manager."""

    def __init__(self, api: str, object_store: str | None = None) -> None:
        self._api = api
        self._object_store = object_store
        self._faults: list[Fault] = []
        self._exchanges: list[Exchange] = []
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(
        self,
        status: int,
        method: str,
        prefix: str = "/",
        *,
        times: int = 1,
        retry_after: float | None = None,
        echo: str | None = None,
    ) -> None:
        """Answer the next requests of a method and a path prefix with a status; nothing is forwarded.

        With ``echo``, the name of a header, the answer repeats what the request said there.
        """
        self._add(Fault(method, prefix, status=status, retry_after=retry_after, echo=echo), times)

    def drop(self, when: Drop, method: str, prefix: str = "/", *, times: int = 1) -> None:
        """Drop the next connections of a method and a path prefix, at some moment (see `Fault`)."""
        self._add(Fault(method, prefix, drop=when), times)

    def forget_faults(self) -> None:
        """Answer everything from now on."""
        with self._lock:
            self._faults.clear()

    def faults_left(self) -> int:
        """How many of the faults asked for have not happened yet."""
        with self._lock:
            return len(self._faults)

    def exchanges(self, method: str | None = None, prefix: str = "/") -> list[Exchange]:
        """Everything that came, faults included, in the order in which it ended."""
        with self._lock:
            return [
                exchange
                for exchange in self._exchanges
                if method in {None, exchange.method} and exchange.path.startswith(prefix)
            ]

    def requests(self, method: str | None = None, prefix: str = "/") -> int:
        """The number of requests, faults included."""
        return len(self.exchanges(method, prefix))

    def response_bytes(self, method: str | None = None, prefix: str = "/") -> int:
        """The size of all bodies sent back."""
        return sum(exchange.response_bytes for exchange in self.exchanges(method, prefix))

    def _add(self, fault: Fault, times: int) -> None:
        with self._lock:
            self._faults += [fault] * times

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The first fault that is due for this request, which is then done with."""
        with self._lock:
            for fault in self._faults:
                if fault.method == method and path.startswith(fault.prefix):
                    self._faults.remove(fault)
                    return fault
        return None

    def record(self, exchange: Exchange) -> None:
        """Note how a request ended, before its client can know it."""
        with self._lock:
            self._exchanges.append(exchange)

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request on; status, headers and body of the answer, 502 if there is none."""
        stored = self._object_store is not None and request.path.startswith(BUCKET)
        target = urlsplit(self._object_store if stored else self._api)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=UPSTREAM_SECONDS)
        try:
            connection.request(request.command, request.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            return HTTPStatus.BAD_GATEWAY, {}, str(error).encode()
        finally:
            connection.close()
        if self._object_store is not None and not stored:
            content = content.replace(self._object_store.encode(), self.url.encode())
        length = response.getheader("Content-Length")
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        if request.command == "HEAD" and length is not None:
            headers["Content-Length"] = length  # of what a GET would bring
        return response.status, headers, content


_HOP_BY_HOP = {"connection", "content-length", "date", "host", "keep-alive", "server", "transfer-encoding"}
"""Headers of one connection, and those that the sender of a message sets by itself."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: FaultyProxy) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.proxy = proxy


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _handle(self) -> None:
        proxy = self.server.proxy
        # Read in any case: a client that is cut off while it still sends fails otherwise than one that waits.
        body = self._read_body()
        fault = proxy.take_fault(self.command, self.path)
        if fault is not None and fault.status is not None:
            headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
            said = "a fault that was asked for"
            if fault.echo is not None:  # in the words of the real server
                said = f"Invalid API key format: '{self.headers.get(fault.echo, '')}'."
            content = json.dumps({"detail": said}).encode()
            self._answer(fault.status, headers, content, forwarded=False)
        elif fault is not None and fault.drop == "never":
            proxy.ended.wait()
            self._drop(forwarded=False)
        elif fault is not None and fault.drop == "before":
            self._drop(forwarded=False)
        else:
            answer = proxy.forward(self, body)
            if fault is None:
                self._answer(*answer, forwarded=True)
            else:
                self._drop(forwarded=True)

    def _read_body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            # A client waits a second for this before it sends a body.
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return body

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - the names the base class calls

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, forwarded: bool) -> None:
        self.server.proxy.record(Exchange(self.command, self.path, forwarded, status, len(content), self._key()))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # a client that has given up
                self.wfile.write(content)

    def _drop(self, *, forwarded: bool) -> None:
        self.server.proxy.record(Exchange(self.command, self.path, forwarded, None, 0, self._key()))
        self.close_connection = True

    def _key(self) -> str | None:
        return self.headers.get(KEY_HEADER)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet: ``exchanges`` tells more."""
