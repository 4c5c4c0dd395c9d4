"""Whether Ray can use its folder for sockets and logs, before a run starts Ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from attrib_batch.errors import RequestError

SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a socket that the system takes."""
_BELOW = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path that Ray makes below its folder; a session's name holds its time and the driver's process number."""


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
