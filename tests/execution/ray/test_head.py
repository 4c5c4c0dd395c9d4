"""The watch on the head of a cluster: a port that somebody listens on, or nobody."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from attrib_batch.errors import RequestError, RunInterruptedError
from attrib_batch.execution.ray.head import RAY_PATIENCE, HeadWatch
from tests.support.ports import LOOPBACK

WAIT_SECONDS = 30
FOR_EVER = 1e6


@pytest.fixture
def head() -> socket.socket:
    return socket.create_server((LOOPBACK, 0))


def address(head: socket.socket) -> str:
    return f"{LOOPBACK}:{head.getsockname()[1]}"


def wait_until_lost(watch: HeadWatch) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not watch.lost:
        assert time.monotonic() < deadline, "nobody noticed"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_head_that_is_gone_ends_what_waits_for_it(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_PATIENCE, "2")
    never = threading.Event()
    with HeadWatch(address(head)) as watch:
        watch.check()
        threading.Timer(0.5, head.close).start()
        with pytest.raises(RunInterruptedError, match=f"the head of the Ray cluster at {LOOPBACK}:.* is gone"):
            watch.ask(never.wait)
        assert watch.lost
        with pytest.raises(RunInterruptedError, match="the same command goes on from there"):
            watch.check()
    never.set()


@pytest.mark.slow
def test_a_head_that_comes_back_in_time_is_asked_again(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_PATIENCE, str(FOR_EVER))
    place = head.getsockname()
    calls = []

    def call() -> str:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ConnectionError("the head is away")
        return "an answer"

    with HeadWatch(address(head)) as watch:
        head.close()
        servers: list[socket.socket] = []
        threading.Timer(1.0, lambda: servers.append(socket.create_server(place))).start()
        assert watch.ask(call) == "an answer"
        assert not watch.lost
    assert len(calls) == 2
    servers[0].close()


def test_what_a_call_raises_is_raised_while_the_head_is_there(head: socket.socket) -> None:
    def refuse() -> None:
        raise RequestError("no room")

    with head, HeadWatch(address(head)) as watch, pytest.raises(RequestError, match="no room"):
        watch.ask(refuse)


@pytest.mark.slow
def test_a_head_that_was_never_reached_is_not_judged(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_PATIENCE, "0")
    where = address(head)
    head.close()
    with HeadWatch(where) as watch:
        time.sleep(2.5)
        assert not watch.lost
        assert watch.ask(lambda: 7) == 7


@pytest.mark.slow
def test_only_a_head_that_stays_away_is_lost(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY_PATIENCE, "0")
    with HeadWatch(address(head)) as watch:
        time.sleep(2.5)
        assert not watch.lost
        head.close()
        wait_until_lost(watch)
