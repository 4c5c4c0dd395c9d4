"""An emulator of Google Cloud Storage on loopback, and what it lacks."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import threading
from contextlib import ExitStack
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.support.faulty_proxy import FaultyProxy
from tests.support.ndif_environment import google_store_environment
from tests.support.ports import LOOPBACK, free_ports
from tests.support.processes import Guard, Service, end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from multiprocessing.connection import Connection

GOOGLE_BUCKET = "tests"
START_SECONDS = 60


def ask_google(address: str, path: str) -> tuple[int, bytes]:
    """A GET that does not go by way of what is under test; status and body."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="session")
def google_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The emulator's address (host:port), with one bucket."""
    folder = tmp_path_factory.mktemp("google-store")
    [port] = free_ports(1)
    address = f"{LOOPBACK}:{port}"
    command = [
        google_store_environment() / "bin/gcp-storage-emulator",
        "start", f"--host={LOOPBACK}", f"--port={port}", "--in-memory", f"--default-bucket={GOOGLE_BUCKET}",
    ]  # fmt: skip
    environment = {name: os.environ[name] for name in ("LANG", "LC_ALL", "PATH", "TMPDIR") if name in os.environ}
    with ExitStack() as stack:
        guard = Guard()
        stack.callback(guard.dismiss)
        service = Service.start("gcs", command, environment=environment | {"HOME": str(folder)}, folder=folder)
        stack.callback(end, [service])
        guard.watch(service)
        service.wait_until(lambda: ask_google(address, f"/storage/v1/b/{GOOGLE_BUCKET}")[0] == 200, START_SECONDS)
        yield address


class GoogleConditions(FaultyProxy):
    """Uploads that heed ``ifGenerationMatch``, and content with its generation: a proxy in front of the emulator.

    It lets one request through at a time, so that nothing comes between the look at an object's generation and the
    upload. It runs in a process of its own, since pyarrow waits for Google's store without letting other threads run.
    """

    def __init__(self, address: str) -> None:
        super().__init__(f"http://{address}")
        self._address = address
        self._turn = threading.Lock()

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request on where its condition holds; status, headers and body of the answer."""
        parts = urlsplit(request.path)
        query = parse_qs(parts.query)
        with self._turn:
            if request.command == "POST" and "ifGenerationMatch" in query:
                name = quote(query["name"][0], safe="")
                if query["ifGenerationMatch"][0] != self._generation(f"/storage/v1/b/{GOOGLE_BUCKET}/o/{name}"):
                    return HTTPStatus.PRECONDITION_FAILED, {}, b"conditionNotMet"
            status, headers, content = super().forward(request, body)
            if request.command == "GET" and query.get("alt") == ["media"] and status == HTTPStatus.OK:
                headers["x-goog-generation"] = self._generation(parts.path)
            return status, headers, content

    def _generation(self, path: str) -> str:
        """The generation of an object, 0 where there is none."""
        status, content = ask_google(self._address, path)
        return str(json.loads(content)["generation"]) if status == HTTPStatus.OK else "0"


def _serve(address: str, url: Connection) -> None:
    with GoogleConditions(address) as proxy:
        url.send(proxy.url)
        url.poll(None)  # until the other end is closed


@pytest.fixture(scope="session")
def google_conditions(google_store: str) -> Iterator[str]:
    """The URL of the emulator behind a proxy that heeds conditions."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(google_store, there), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(START_SECONDS), "the proxy did not start"
        yield here.recv()
    finally:
        here.close()
        process.join()
