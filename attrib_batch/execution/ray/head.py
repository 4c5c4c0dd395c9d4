"""Watch whether the head of the Ray cluster is still there.

A driver that has lost it would end without a word: some of Ray's calls wait for the head for ever, and after a minute
Ray ends the process itself. So the head's port is watched, calls that need the head are made where they can be left
waiting, and the run ends in time to say how it goes on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

from attrib_batch.errors import RunInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

LOOK_SECONDS = 1.0
CONNECT_SECONDS = 5.0
"""How long the head may take to accept a connection."""
RAY_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own setting: how many seconds it waits for a head that is gone before it ends the process."""
RAY_PATIENCE_SECONDS = 60.0
"""What it is where the environment does not say."""
SHUTDOWN_SECONDS = 10.0
"""How long Ray is given to end what it can without a head."""

T = TypeVar("T")


class HeadWatch:
    """Looks at the head's port from a thread, for the length of a ``with``; does not judge a head it never reached."""

    def __init__(self, address: str) -> None:
        """Watch the head at ``host:port``; it is lost when it was away for half as long as Ray itself would wait."""
        self._address = address
        self._patience = float(os.environ.get(RAY_PATIENCE, RAY_PATIENCE_SECONDS)) / 2
        self._away_since: float | None = None
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)

    def __enter__(self) -> Self:
        if answers(self._address):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def lost(self) -> bool:
        """Whether the head is gone for good, as far as this run is concerned."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raise RunInterruptedError if the head is lost."""
        if self.lost:
            raise RunInterruptedError(
                f"the head of the Ray cluster at {self._address} is gone: it took no connection for "
                f"{self._patience:.0f} s. What is committed stays; with a cluster again, the same command goes on from "
                "there."
            )

    def ask(self, call: Callable[[], T]) -> T:
        """Return or raise what ``call`` does, which needs the head; repeat it if it fails while the head is away.

        Raises:
            RunInterruptedError: the head is lost; the call is left to itself.
        """
        while True:
            answer: Future[T] = Future()
            threading.Thread(target=_answer, args=(answer, call), name="ask", daemon=True).start()
            while not wait([answer], LOOK_SECONDS).done:
                self.check()
            if answer.exception() is None or not self._comes_back():
                return answer.result()

    def _comes_back(self) -> bool:
        """Wait for a head that is away, and return True; return False for one that is not."""
        self.check()
        if not self._thread.is_alive() or answers(self._address):
            return False
        while not answers(self._address):
            self.check()
            self._ended.wait(LOOK_SECONDS)
        return True

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if answers(self._address):
                self._away_since = None
                continue
            now = time.monotonic()
            if self._away_since is None:
                self._away_since = now
            elif now - self._away_since >= self._patience:
                self._lost.set()
                return


def answers(address: str) -> bool:
    """Return whether somebody accepts connections at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _answer(answer: Future[T], call: Callable[[], T]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where the answer is wanted
        answer.set_exception(error)
