"""A hub on loopback with one dataset repository: the few answers that huggingface_hub asks for when it reads a file."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
_API = re.compile(
    r"^/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<folder>.+))?)?$"
)
_RESOLVE = re.compile(r"^/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")


@dataclass
class Hub:
    """What it has."""

    repo: str
    commits: dict[str, dict[str, bytes]]
    """Files by path, of each commit."""
    main: str
    """The commit that the branch is at."""
    lfs: bool = True
    """Whether the metadata of a file tell its SHA-256."""
    fails: bool = False
    """Whether downloads are answered with 500."""
    downloads: list[str] = field(default_factory=list)
    """The ranges of files that were asked for."""

    def answer(self, path: str, range_: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a GET."""
        if (match := _API.match(path)) is not None:
            commit = self._commit(match["repo"], match["revision"])
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound" if match["repo"] == self.repo else "RepoNotFound"}, b""
            data: object = {"id": self.repo, "sha": commit, "siblings": []}
            if match["what"] == "tree":
                data = self._tree(commit, match["folder"] or "")
            return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()
        match = _RESOLVE.match(path)
        commit = match and self._commit(match["repo"], match["revision"])
        content = self.commits[commit].get(match["path"]) if match and commit else None
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.downloads.append(str(range_))
        if self.fails:
            return 500, {}, b""
        found = re.match(r"^bytes=(\d+)-(\d+)$", range_ or "")
        if found is None:
            return 200, {}, content
        part = content[int(found[1]) : int(found[2]) + 1]
        return 206, {"Content-Range": f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}"}, part

    def _commit(self, repo: str, revision: str | None) -> str | None:
        name = unquote(revision or "main")
        commit = self.main if name == "main" else name
        return commit if repo == self.repo and commit in self.commits else None

    def _tree(self, commit: str, folder: str) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
            }
            | (
                {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
                if self.lfs
                else {}
            )
            for path, content in self.commits[commit].items()
            if path.rpartition("/")[0] == folder
        ]


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve it; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the name the base class calls
            status, headers, body = hub.answer(urlsplit(self.path).path, self.headers.get("Range"))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
