"""One driver at a time: a lease on a run's directory, renewed while it runs.

The lease is one small file, and every change of it is conditional: it is created only where there is none, and replaced
only as it was read. So of several drivers that start together, or find the lease of one that died, exactly one gets it,
and one that was taken over from cannot write over its successor.

A driver that dies leaves its lease behind. On its own machine that shows at once, since its process is gone; on
another, once the lease has not been renewed for a while.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from attrib_batch.errors import OutputError, RunInterruptedError

if TYPE_CHECKING:
    from attrib_batch.storage.conditional import Version
    from attrib_batch.storage.store import Store

LEASE = "lease.json"
RENEW_SECONDS = 5.0
WATCH_SECONDS = 3 * RENEW_SECONDS
"""How long a lease that looks expired is watched: clocks differ, and a driver at work renews it meanwhile."""
EXPIRES_SECONDS = 60.0
TRIES = 8
"""How often the lease is tried for when it changes each time between a look and a write."""
PAUSE_SECONDS = 0.1
"""Between two tries: a store may answer a write while another's is under way with a conflict."""


@dataclass(frozen=True)
class Holder:
    """Who has a lease."""

    execution: str
    """One execution of a driver; no two share it."""
    host: str
    pid: int
    process_started: str
    """When the process started, as its system counts: a process number may be given out again."""
    renewed_at: float
    """Seconds since 1970, by the holder's clock."""

    @classmethod
    def here(cls, execution: str) -> Holder:
        """Describe this process, now."""
        return cls(execution, socket.gethostname(), os.getpid(), _started(os.getpid()), time.time())

    @property
    def is_here(self) -> bool:
        """Whether the holder is, or was, a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def fresh(self) -> bool:
        """Whether the lease was renewed lately, as far as two machines' clocks tell."""
        return abs(time.time() - self.renewed_at) < EXPIRES_SECONDS

    @property
    def seems_at_work(self) -> bool:
        """Whether the holder seems to be at work: its process exists, or elsewhere its lease is fresh."""
        return self.process_is_there() if self.is_here else self.fresh

    def process_is_there(self) -> bool:
        """Return whether the process exists; asked on its own machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return _started(self.pid) == self.process_started


@dataclass
class Lease:
    """The lease of a run's directory that this process holds."""

    store: Store
    execution: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _version: Version | None = field(default=None, init=False, repr=False)
    """What this process wrote last."""
    _lost: bool = field(default=False, init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)

    @classmethod
    def take(cls, store: Store) -> Lease:
        """Take the lease, and renew it until it is released.

        Raises:
            OutputError: another driver has it, or the directory cannot be written.
        """
        lease = cls(store)
        lease._acquire()
        lease._thread = threading.Thread(target=lease._keep, name="lease", daemon=True)
        lease._thread.start()
        return lease

    def check(self) -> None:
        """Check that this process still has the lease.

        Raises:
            RunInterruptedError: another driver has taken over: this one could not renew its lease in time.
        """
        if self._lost:
            raise RunInterruptedError(
                f"another driver has taken over {self.store.root}: this one did not renew its lease for "
                f"{EXPIRES_SECONDS:.0f} s. What is committed stays, and the other one goes on."
            )

    def release(self) -> str | None:
        """Give the lease back; return what went wrong, None where nothing did.

        It raises nothing: what it met must not hide how the run ended.
        """
        self._released.set()
        try:
            if self._thread is not None:
                self._thread.join(RENEW_SECONDS)
            if self._is_mine(_holder(self.store.read_bytes(LEASE))):
                self.store.remove(LEASE)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever a store raises
            return (
                f"the lease could not be given back: {error}. It is forgotten once this process has ended; on another "
                f"machine {EXPIRES_SECONDS:.0f} s later."
            )
        return None

    def _acquire(self) -> None:
        found: Version | None = None
        for _ in range(TRIES):
            written = self.store.write_unless_changed(LEASE, self._content(), found)
            if written is None:
                found = self.store.read_version(LEASE)
                holder = _parse(found)
                if self._is_mine(holder):  # the answer was lost, not the request
                    written = found
            if written is not None:
                self._version = written
                self._check_store(written)
                return
            if holder is not None:
                self._refuse_if_at_work(holder)
            time.sleep(PAUSE_SECONDS)
        raise OutputError(f"cannot take {self.store.path(LEASE)}: others change it all the time. Try again.")

    def _check_store(self, written: Version) -> None:
        try:
            self.store.check_conditions(LEASE, written)
        except BaseException:
            self.release()
            raise

    def _keep(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                self._renew()
            except Exception:  # noqa: BLE001, S112 - whatever a store raises: who commits a chunk meets the same
                continue
            if self._lost:
                return

    def _renew(self) -> None:
        written = self.store.write_unless_changed(LEASE, self._content(), self._version)
        if written is not None:
            self._version = written
            return
        found = self.store.read_version(LEASE)
        holder = _parse(found)
        if holder is not None and not self._is_mine(holder):
            self._lost = True
        else:  # it is mine after all, or torn, or removed by hand: the next renewal starts from that
            self._version = found

    def _content(self) -> bytes:
        return (json.dumps(asdict(Holder.here(self.execution)), indent=2) + "\n").encode()

    def _is_mine(self, holder: Holder | None) -> bool:
        return holder is not None and holder.execution == self.execution

    def _refuse_if_at_work(self, holder: Holder) -> None:
        """Raise OutputError if a holder is at work, or another has taken the lease meanwhile."""
        if not holder.seems_at_work:
            if holder.is_here:
                return
            time.sleep(WATCH_SECONDS)
            now = read_holder(self.store)
            if now in {holder, None}:
                return
            holder = now
        raise OutputError(
            f"another driver runs in {self.store.root}: process {holder.pid} on {holder.host}, last heard of "
            f"{max(0.0, time.time() - holder.renewed_at):.0f} s ago. Wait for its end, or stop it; one that died "
            f"elsewhere is forgotten after {EXPIRES_SECONDS:.0f} s."
        )


def read_holder(store: Store) -> Holder | None:
    """Return the holder that the file names; None where there is none, or none that can be read."""
    try:
        return _holder(store.read_bytes(LEASE))
    except (OSError, OutputError):
        return None


def _parse(found: Version | None) -> Holder | None:
    return None if found is None else _holder(found.data)


def _holder(content: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _started(pid: int) -> str:
    """Return when a process of this machine started; empty where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return state.rpartition(")")[2].split()[19]
