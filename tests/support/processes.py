"""Server processes of a test run: a log file each, readiness with a deadline, and an end that leaves nothing behind.

Every service leads a session of its own. A session outlives its leader, so that workers whose parent has died are
still found; and a guard process ends all services when the process that started them dies without doing so.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

LOG_TAIL_BYTES = 4000
POLL_SECONDS, END_SECONDS = 0.1, 30


class ServiceError(RuntimeError):
    """A server process ended or was not ready in time; the message names it and ends with the end of its log."""


@dataclass(frozen=True)
class Service:
    """A process that runs until it is ended."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, name: str, command: Sequence[str | Path], *, environment: Mapping[str, str], folder: Path
    ) -> Service:
        """Start ``command`` in ``folder``; what it prints is appended to ``<name>.log`` there."""
        log = folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(name, process, log)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for ``ready``, which may raise OSError for "not yet"; the process has to live meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if ready():
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise self.failed(f"ended with code {self.process.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise self.failed(f"was not ready after {seconds:g} s")
            time.sleep(POLL_SECONDS)

    def wait_for_success(self, seconds: float) -> None:
        """Wait for the process to end by itself with code 0."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"was not done after {seconds:g} s") from None
        if code:
            raise self.failed(f"ended with code {code}")

    def failed(self, what: str) -> ServiceError:
        """An error with the end of the log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace")
        return ServiceError(f"{self.name} {what}; the end of {self.log.name}:\n{tail}")


def end(services: Iterable[Service]) -> None:
    """Kill services with everything they have started."""
    services = list(services)
    killed = _kill({service.process.pid for service in services})
    for service in services:
        service.process.wait()
    deadline = time.monotonic() + END_SECONDS
    while left := [process.pid for process in killed if not is_gone(process)]:
        if time.monotonic() > deadline:
            raise ServiceError(f"still there {END_SECONDS} s after being killed: processes {left}")
        time.sleep(POLL_SECONDS / 10)


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; in a container nobody may collect what is left of an orphan."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _kill(leaders: set[int]) -> list[psutil.Process]:
    # All are frozen before the first is killed: a process that lives on could start another one, or (NDIF's
    # dispatcher without its redis) fill the disk with complaints about the ones already gone.
    frozen: dict[int, psutil.Process] = {}
    while new := {pid: member for pid, member in _members(leaders).items() if pid not in frozen}:
        frozen |= new
        for member in new.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
    for member in frozen.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    return list(frozen.values())


def members_of(leaders: set[int]) -> list[psutil.Process]:
    """The processes in the sessions that ``leaders`` lead, and what these have started."""
    return list(_members(leaders).values())


def _members(leaders: set[int]) -> dict[int, psutil.Process]:
    """The processes in the sessions that ``leaders`` lead or led, and the descendants of these."""
    members: dict[int, psutil.Process] = {}
    others: list[tuple[psutil.Process, int]] = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(process.pid) in leaders:
                members[process.pid] = process
            else:
                others.append((process, process.ppid()))
    while children := {process.pid: process for process, parent in others if parent in members}:
        members |= children
        others = [(process, parent) for process, parent in others if process.pid not in members]
    return members


class Guard:
    """A process that waits for the end of this one, and then ends the services this one has not ended itself."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    def watch(self, service: Service) -> None:
        """End this service in case of need."""
        self._tell(f"+{service.process.pid}")

    def release(self, service: Service) -> None:
        """The service has ended, and its number may soon be another process's."""
        self._tell(f"-{service.process.pid}")

    def dismiss(self) -> None:
        """Nothing is left to watch."""
        self._process.kill()
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


def _guard(orders: Iterable[str]) -> None:
    watched: set[int] = set()
    for order in orders:
        pid = int(order[1:])
        watched = watched | {pid} if order[0] == "+" else watched - {pid}
    _kill(watched)


if __name__ == "__main__":
    _guard(sys.stdin)
