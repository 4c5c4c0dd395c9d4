"""One driver at a time: a lease on a run's directory, renewed while it runs.

The lease is one small file. A driver that dies leaves it behind. On its own machine that shows at once, since its
process is gone; on another, once the lease has not been renewed for a while.
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
    from attrib_batch.store import Store

LEASE = "lease.json"
RENEW_SECONDS = 5.0
WATCH_SECONDS = 3 * RENEW_SECONDS
"""How long a lease that looks expired is watched: clocks differ, and a driver at work renews it meanwhile."""
EXPIRES_SECONDS = 60.0
SETTLE_SECONDS = 0.3
"""How long a driver waits to see whether another took the lease in the same moment; the last one to write has it."""


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
        """This process, now."""
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
        """Whether the holder is at work, as far as one look tells."""
        return self.process_is_there() if self.is_here else self.fresh

    def process_is_there(self) -> bool:
        """Whether the process is there; asked on its own machine."""
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
    _lost: bool = field(default=False, init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    @classmethod
    def take(cls, store: Store) -> Lease:
        """Take the lease, and renew it until it is released.

        Raises:
            OutputError: another driver has it, or the directory cannot be written.
        """
        lease = cls(store)
        lease._refuse_if_held()
        lease._write()
        time.sleep(SETTLE_SECONDS)
        lease._refuse_if_held()
        threading.Thread(target=lease._keep, name="lease", daemon=True).start()
        return lease

    def check(self) -> None:
        """Nothing, unless another driver has taken over.

        Raises:
            RunInterruptedError: it has: this one could not renew its lease in time.
        """
        if self._lost:
            raise RunInterruptedError(
                f"another driver has taken over {self.store.root}: this one did not renew its lease for "
                f"{EXPIRES_SECONDS:.0f} s. What is committed stays, and the other one goes on."
            )

    def release(self) -> None:
        """Let others have it."""
        self._released.set()
        holder = read_holder(self.store)
        if holder is not None and holder.execution == self.execution:
            self.store.remove(LEASE)

    def _keep(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            holder = read_holder(self.store)
            if holder is not None and holder.execution != self.execution:
                self._lost = True
                return
            try:
                self._write()
            except OutputError:
                continue  # whoever commits a chunk meets the same and says so

    def _write(self) -> None:
        self.store.write_bytes(LEASE, (json.dumps(asdict(Holder.here(self.execution)), indent=2) + "\n").encode())

    def _is_held(self, holder: Holder) -> bool:
        if holder.is_here:
            return holder.process_is_there()
        if holder.fresh:
            return True
        time.sleep(WATCH_SECONDS)
        return read_holder(self.store) not in {holder, None}

    def _refuse_if_held(self) -> None:
        holder = read_holder(self.store)
        if holder is not None and holder.execution != self.execution and self._is_held(holder):
            raise OutputError(
                f"another driver runs in {self.store.root}: process {holder.pid} on {holder.host}, last heard of "
                f"{max(0.0, time.time() - holder.renewed_at):.0f} s ago. Wait for its end, or stop it; one that died "
                f"elsewhere is forgotten after {EXPIRES_SECONDS:.0f} s."
            )


def read_holder(store: Store) -> Holder | None:
    """The holder that the file names; None where there is none, or none that can be read."""
    try:
        return Holder(**json.loads(store.read_bytes(LEASE)))
    except (OSError, ValueError, TypeError, OutputError):
        return None


def _started(pid: int) -> str:
    """When a process of this machine started; empty where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return state.rpartition(")")[2].split()[19]
