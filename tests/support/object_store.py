"""A real S3-compatible server on loopback, and the environment that leads to it."""

from __future__ import annotations

import http.client
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.ndif_environment import moto_environment
from tests.support.ports import LOOPBACK, free_ports
from tests.support.processes import Guard, Service, end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_SECONDS = 60
SECRET = "a-secret-that-nothing-may-show"  # noqa: S105 - it opens nothing


SIGNED = "AWS4-HMAC-SHA256 Credential=tester/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""The server asks that a request be signed, and not by whom."""


@dataclass(frozen=True)
class ObjectStore:
    """The server, and a way to its objects that is not the one under test."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a user's environment would say."""
        return endpoint_environment(self.url)

    def make_bucket(self, name: str) -> str:
        """A bucket; returns its name."""
        assert self.request("PUT", f"/{name}")[0] == 200
        return name

    def get(self, path: str) -> bytes | None:
        """The content of ``bucket/key``, None where there is no such object."""
        status, body = self.request("GET", f"/{path}")
        return body if status == 200 else None

    def put(self, path: str, data: bytes) -> None:
        """Write ``bucket/key``."""
        assert self.request("PUT", f"/{path}", data)[0] == 200

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Make a request; status and body of the answer."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": SIGNED})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def endpoint_environment(url: str) -> dict[str, str]:
    """The environment variables that lead to a server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def object_store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The server, started once."""
    folder = tmp_path_factory.mktemp("object-store")
    [port] = free_ports(1)
    store = ObjectStore(f"http://{LOOPBACK}:{port}")
    with ExitStack() as stack:
        guard = Guard()
        stack.callback(guard.dismiss)
        service = _start(folder, port)
        stack.callback(end, [service])
        guard.watch(service)
        service.wait_until(lambda: store.request("GET", "/")[0] == 200, START_SECONDS)
        yield store


def _start(folder: Path, port: int) -> Service:
    environment = {name: os.environ[name] for name in ("LANG", "LC_ALL", "PATH", "TMPDIR") if name in os.environ}
    command = [moto_environment() / "bin/moto_server", "-H", LOOPBACK, "-p", str(port)]
    return Service.start("moto", command, environment=environment | {"HOME": str(folder)}, folder=folder)


@pytest.fixture
def object_store(object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, with the environment of this process leading to it."""
    for name, value in object_store_server.environment.items():
        monkeypatch.setenv(name, value)
    return object_store_server
