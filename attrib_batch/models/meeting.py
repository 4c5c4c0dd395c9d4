"""Where processes that share one model's weights meet: a port that the first of them listens at. Needs no torch."""

from __future__ import annotations

import socket


def listen(address: str, port: int = 0) -> socket.socket:
    """Listen on one address alone, at a port or at any free one.

    Raises:
        OSError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)
