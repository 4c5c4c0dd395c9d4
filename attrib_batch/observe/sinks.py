"""Where the lines of a log go: appended to a file, or written as a whole to an object store.

A store that refuses the log ends no run: the tables are what counts.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrib_batch.errors import OutputError

if TYPE_CHECKING:
    from attrib_batch.storage.store import Store

PUT_SECONDS = 10.0
"""Least time between two writes of the log to an object store, which has no way to append."""
PUT_SHARE = 0.05
"""Most of the time that these writes may take: a long log is written less often."""


class Sink(Protocol):
    """Where lines go."""

    def write(self, line: bytes) -> None:
        """Take one line, its end included; raise nothing if the store cannot be written."""

    def close(self) -> None:
        """Write what is left."""


class FileSink:
    """Appends to a file: a line is there as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, line: bytes) -> None:
        """Append a line in one system call, or nothing where the disk refuses it."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write(line)

    def close(self) -> None:
        """Do nothing: every line is written already."""


class ObjectSink:
    """Writes all lines so far as one object, now and then in a thread of its own, and at the end."""

    def __init__(self, store: Store, name: str, *, seconds: float = PUT_SECONDS) -> None:
        self._store, self._name, self._seconds = store, name, seconds
        self._lines = bytearray()
        self._n_written = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Keep a line until the next write."""
        self._lines += line

    def close(self) -> None:
        """Write everything."""
        self._closed.set()
        self._thread.join()
        self._put()

    def _keep(self) -> None:
        wait = self._seconds
        while not self._closed.wait(wait):
            started = time.monotonic()
            self._put()
            wait = max(self._seconds, (time.monotonic() - started) / PUT_SHARE)

    def _put(self) -> None:
        lines = bytes(self._lines)
        if len(lines) == self._n_written:
            return
        with contextlib.suppress(OutputError):
            self._store.write_bytes(self._name, lines)
            self._n_written = len(lines)


def open_sink(store: Store, name: str) -> Sink:
    """Return the sink that suits the store: only a file can be appended to."""
    path: object = store.path(name)
    return FileSink(path) if isinstance(path, Path) else ObjectSink(store, name)
