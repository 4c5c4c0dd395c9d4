"""Free ports on loopback for servers that are told theirs, and which ones Ray takes."""

from __future__ import annotations

import os
import random
import socket

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 10
RAY_PORTS = (
    "port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
"""The options of ``ray start`` that each take a port."""
N_WORKER_PORTS = 40
PORTS = range(10_002, 23_000)
"""Below those that the system gives to outgoing connections, and those that Ray takes for its clients' servers.

Above 10001: a node that joins a cluster refuses to give its workers that one, which Ray keeps for its clients.
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that no other call is given: who asks may listen much later."""
    free: list[int] = []
    while len(free) < count:
        port = random.choice(_own_ports())
        if port not in _tried and _can_be_bound(port):
            free.append(port)
        _tried.add(port)
    return free


_tried: set[int] = set()


def _own_ports() -> range:
    """Those of this process alone, where tests run in several (pytest-xdist)."""
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return PORTS[index :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]


def _can_be_bound(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody does; raises OSError where nobody does."""
    with socket.create_connection((LOOPBACK, port), ANSWER_SECONDS):
        return True
