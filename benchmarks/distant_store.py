"""A folder as an object store that is far away: every answer comes after a delay.

It knows of S3's protocol what reading a run and writing a few small objects takes, and checks no signature. Run as
``python -m benchmarks.distant_store FOLDER SECONDS``; it prints its address, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
"""Keys of one answer to a listing, as S3 has them."""


@dataclass
class DistantStore:
    """The first folder of a path is the bucket, and stands for the folder that is served."""

    folder: Path
    delay: float
    n_requests: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split()
                headers = {}
                while header := (await reader.readline()).decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                if headers.get("expect") == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # without it a client waits a second
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.n_requests += not target.startswith("/-requests")
                await asyncio.sleep(self.delay)
                status, more, content = self._answer(method, target, headers, body)
                # The length of what a HEAD request does not get is in its headers.
                length = more.pop("Content-Length", str(len(content)))
                head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {length}\r\n{head}\r\n".encode() + content)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # whoever asked has gone, or the server ends
        finally:
            writer.close()

    def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(target)
        path = self.folder / unquote(url.path).lstrip("/").partition("/")[2]
        if url.path == "/-requests":
            return 200, {}, str(self.n_requests).encode()
        if method == "GET" and "list-type=2" in url.query:
            return 200, {"Content-Type": "application/xml"}, self._list(parse_qs(url.query, keep_blank_values=True))
        if method == "PUT":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            return 200, {"ETag": '"0"'}, b""
        return _read(path, headers, with_content=method == "GET") if path.is_file() else (404, {}, b"")

    def _list(self, query: dict[str, list[str]]) -> bytes:
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "continuation-token"))
        files, folders = [], set()
        # No more than what begins with the prefix, whose last part may be half of a name.
        base = self.folder / prefix.rpartition("/")[0]
        deep = "delimiter" not in query
        for path in sorted(base.rglob("*") if deep else base.glob("*")) if base.is_dir() else []:
            key = path.relative_to(self.folder).as_posix()
            if path.is_file() and key.startswith(prefix):
                files.append((key, path.stat()))
            elif not deep and f"{key}/".startswith(prefix):
                folders.add(f"{key}/")
        files.sort()
        rest = [(key, facts) for key, facts in files if key > after]
        page, more = rest[:PAGE], len(rest) > PAGE
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{facts.st_size}</Size><ETag>&quot;0&quot;</ETag><LastModified>"
            f"{datetime.fromtimestamp(facts.st_mtime, UTC):%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key, facts in page
        )
        contents += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        return (
            f"<?xml version='1.0'?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>"
            f"{len(page) + len(folders)}</KeyCount>{token}{contents}</ListBucketResult>"
        ).encode()


def _read(path: Path, headers: dict[str, str], *, with_content: bool) -> tuple[int, dict[str, str], bytes]:
    facts = {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True), "ETag": '"0"'}
    if not with_content:
        return 200, facts | {"Content-Length": str(path.stat().st_size)}, b""
    data = path.read_bytes()
    if asked := headers.get("range", "").removeprefix("bytes="):
        first, _, last = asked.partition("-")
        return 206, facts, data[int(first) : int(last) + 1]
    return 200, facts, data


async def _main(folder: Path, delay: float) -> None:
    store = DistantStore(folder, delay)
    server = await asyncio.start_server(store.serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2])))
