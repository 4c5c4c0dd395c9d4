"""Start Ray on this machine, or join a cluster."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from attrib_batch.errors import RequestError, RunInterruptedError
from attrib_batch.execution.ray.head import answers

SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a socket that the system takes."""
_BELOW = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path that Ray makes below its folder; a session's name holds its time and the driver's process number."""


_HOST_AND_PORT = re.compile(r"^[^/]+:\d+$")


def prepare_environment(*, starts: bool) -> None:
    """Set what Ray reads of the environment when it is imported; ``starts`` says that Ray is started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if starts:
        # Otherwise Ray replaces the loopback address by the machine's own, and listens there. (On a cluster it would
        # be the other way round: other nodes could not reach this process.)
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Under `uv run`, Ray would send the working folder to the workers and start them by uv, in an environment of their
    # own. They are to run what runs here. Ray reads this once, when it is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def start_ray() -> None:
    """Start Ray on this machine.

    Raises:
        RequestError: its folder for temporary files does not allow that.
        RunInterruptedError: it does not start.
    """
    import ray

    check_ray_folder()
    try:
        ray.init(
            address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
    except Exception as error:  # Ray raises the base class itself where a node does not come up in time
        raise RunInterruptedError(
            f"Ray could not start on this machine: {' '.join(str(error).split())} The machine may be busy, or its "
            "memory or disk full. What is committed stays, and the same command goes on from there."
        ) from error


def join_ray(address: str) -> None:
    """Join the cluster whose head is at an address.

    Raises:
        RunInterruptedError: there is none.
    """
    import ray

    hint = "Is it running, and is --address that of its head (host:port, as `ray start --head` shows it)?"
    if _HOST_AND_PORT.match(address) and not answers(address):
        # Ray itself would try for a quarter of an hour.
        raise RunInterruptedError(f"no Ray cluster answers at {address}. {hint}")
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise RunInterruptedError(
            f"cannot join the Ray cluster at {address}: {' '.join(str(error).split())}"
        ) from error


def check_ray_folder() -> None:
    """Check that Ray can make its sockets in its folder for temporary files.

    Raises:
        RequestError: the folder's path is too long for the sockets, or the folder cannot be written.
    """
    variable, folder = _ray_folder()
    size, most = len(os.fsencode(folder)), SOCKET_BYTES - len(_BELOW.format(pid=os.getpid()))
    if size > most:
        raise RequestError(
            f"{variable} is too long for Ray's sockets: {folder} has {size} bytes, and {most} is the most that fits. "
            "Set RAY_TMPDIR to a shorter folder, for example RAY_TMPDIR=/tmp (it goes before TMPDIR)."
        )
    try:
        Path(folder, "ray").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"Ray cannot keep its sockets and logs in {folder} ({variable}): {error.strerror or error}. Set "
            "RAY_TMPDIR to a folder that can be written, for example RAY_TMPDIR=/tmp."
        ) from error


def _ray_folder() -> tuple[str, str]:
    """Return where Ray starts from, and the variable that says so; the order is Ray's own."""
    for variable in ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",):
        if variable in os.environ:
            return variable, os.environ[variable]
    return "Ray's default", "/tmp"  # noqa: S108 - Ray's, not ours
