"""Which worker does which chunk next: a state machine without Ray, fed with events by the driver."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.schema import Chunk


@dataclass(frozen=True)
class GiveUp:
    """A chunk that was tried as often as its budget allows."""

    chunk: Chunk
    attempts: int
    message: str


@dataclass
class Scheduler:
    """Hands out chunks in order, retries those whose worker was lost, and gives up after a budget of attempts.

    A chunk is always in exactly one of: waiting, in flight, done, given up.
    """

    chunks: Iterable[Chunk]
    max_attempts: int = 3
    _waiting: deque[Chunk] = field(init=False)
    _attempts: dict[Chunk, int] = field(default_factory=dict, init=False)
    _in_flight: set[Chunk] = field(default_factory=set, init=False)
    n_done: int = field(default=0, init=False)
    n_given_up: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._waiting = deque(self.chunks)

    @property
    def finished(self) -> bool:
        """Whether no chunk waits and none is in flight."""
        return not self._waiting and not self._in_flight

    @property
    def n_waiting(self) -> int:
        """How many chunks wait for a worker."""
        return len(self._waiting)

    def assign(self) -> Chunk | None:
        """The next chunk for an idle worker; None when none waits."""
        if not self._waiting:
            return None
        chunk = self._waiting.popleft()
        self._attempts[chunk] = self._attempts.get(chunk, 0) + 1
        self._in_flight.add(chunk)
        return chunk

    def done(self, chunk: Chunk) -> None:
        """A worker committed the chunk."""
        self._in_flight.remove(chunk)
        del self._attempts[chunk]
        self.n_done += 1

    def lost(self, chunk: Chunk, message: str) -> GiveUp | None:
        """The chunk's worker died or raised; the chunk waits again, first in line, or is given up."""
        self._in_flight.remove(chunk)
        if self._attempts[chunk] < self.max_attempts:
            self._waiting.appendleft(chunk)
            return None
        self.n_given_up += 1
        return GiveUp(chunk, self._attempts.pop(chunk), message)
